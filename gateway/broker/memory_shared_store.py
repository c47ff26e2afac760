"""`SharedStore` of one process, bounded in entries and bytes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.core.bounded_dict import BoundedDict

MAX_ENTRIES = 100_000
"""Entries that are held; the oldest are dropped first."""

MAX_ENTRIES_BYTES = 64 * 1024 * 1024
"""Bytes of the entries: a ticket's entry lists its channels."""

MAX_QUOTA_NAMES = 100_000
"""Quotas that are held; those that were not acquired for the longest time are dropped first."""

MAX_QUOTA_SLOTS = 200_000
"""Slots of all quotas together."""


class MemorySharedStore(SharedStore):
    """The store of ``memory://``, lost with the process. ``clock`` returns unix milliseconds."""

    is_shared = False

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._entries: BoundedDict[str, tuple[int, bytes]] = BoundedDict(MAX_ENTRIES, MAX_ENTRIES_BYTES)
        self._slots: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._slot_count = 0

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        self._entries.put(name, (self._clock() + round(seconds * 1000), value))

    async def get(self, name: str) -> bytes | None:
        until, value = self._entries.get(name, (0, b""))
        if until > self._clock():
            return value
        self._entries.remove(name)
        return None

    async def acquire_slots(self, slots: Sequence[QuotaSlot], seconds: float) -> list[bool]:
        now = self._clock()
        return [self._acquire(slot, now, now + round(seconds * 1000)) for slot in slots]

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        for slot in slots:
            members = self._slots.get(slot.name, {})
            self._slot_count -= members.pop(slot.member, None) is not None
            if not members:
                self._slots.pop(slot.name, None)

    def _acquire(self, slot: QuotaSlot, now: int, until: int) -> bool:
        members = self._slots.setdefault(slot.name, {})
        if slot.member not in members and slot.limit is not None:
            for member in [member for member, end in members.items() if end <= now]:
                del members[member]
                self._slot_count -= 1
            if len(members) >= slot.limit:
                return False
        self._slot_count += slot.member not in members
        members[slot.member] = until
        self._slots.move_to_end(slot.name)
        while len(self._slots) > MAX_QUOTA_NAMES or self._slot_count > MAX_QUOTA_SLOTS:
            self._slot_count -= len(self._slots.popitem(last=False)[1])
        return True
