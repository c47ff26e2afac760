"""``memory://``: the log of one process, gone with it."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from gateway.broker.base import (
    MAX_RECENT_IDS,
    MIN_DEDUPLICATION_KEYS,
    Broker,
    HistoryPage,
    HistorySpan,
    OnEvents,
    OnGap,
    SpanIds,
)
from gateway.broker.delivery import Delivery
from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.config.model.config import Config
from gateway.core.bounded_dict import BoundedDict
from gateway.core.clock import unix_ms
from gateway.core.errors import IdempotencyKeyReused
from gateway.core.event import (
    CONTROL_CHANNEL_PREFIX,
    DELETED_OFFSET,
    AppendedIds,
    Draft,
    Event,
    EventId,
    FencingToken,
    SourceOffset,
    pack_id,
)
from gateway.core.history import History
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

# The board of ``memory://``: one process's own.

MAX_ENTRIES = 100_000
"""Notes that are held; the oldest goes first."""

MAX_ENTRIES_BYTES = 64 * 1024 * 1024
"""Bytes of them: a ticket's says which channels it opens."""

MAX_QUOTA_NAMES = 100_000
"""Names of seats that are held, likewise."""

MAX_QUOTA_SLOTS = 200_000
"""Seats of all names together."""


class MemorySharedStore(SharedStore):
    """See `gateway.broker.shared_store`. ``clock`` gives unix milliseconds."""

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
        return [self._acquire(seat, now, now + round(seconds * 1000)) for seat in slots]

    async def release_slots(self, slots: Sequence[QuotaSlot]) -> None:
        for seat in slots:
            members = self._slots.get(seat.name, {})
            self._slot_count -= members.pop(seat.member, None) is not None
            if not members:
                self._slots.pop(seat.name, None)

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


EVENT_OVERHEAD_BYTES = 400
"""Bytes that an event costs beside its payload: measured, rounded up."""


class MemoryBroker(Broker):
    """Appends and delivers in one step, so followers are never behind.

    Ids from before a restart lie before the start of this log: resuming from one is a gap.
    """

    type = "memory"

    def __init__(
        self,
        *,
        history_bytes: int,
        clock: Callable[[], int] = unix_ms,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._clock = clock
        self._head = EventId(clock(), 0)
        self._history: History[Event] = History(max_bytes=history_bytes, start=self._head, clock=clock)
        self._deduplication_keys: OrderedDict[bytes, tuple[EventId, str | None]] = OrderedDict()
        self._offsets: dict[str, str] = {}
        self._delivery = Delivery(background)
        self.shared_store = MemorySharedStore(clock)

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return True

    def apply(self, config: Config) -> None:
        """Keep at most ``limits.history_bytes`` of history, all channels together."""
        self._history.set_max_bytes(config.limits.history_bytes)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self._delivery.stop()

    def follow(self, on_events: OnEvents, on_gap: OnGap) -> None:
        self._delivery.set_handlers(on_events, on_gap)

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        ids = AppendedIds()
        events: list[Event] = []
        if any(draft.request_fingerprint is not None and self._has_key_conflict(draft) for draft in drafts):
            raise IdempotencyKeyReused
        for draft in drafts:
            key = None if draft.deduplication_key is None else _digest(draft.channel, draft.deduplication_key)
            seen = None if key is None else self._deduplication_keys.get(key)
            if seen is not None:
                ids.append(seen[0])
                ids.duplicate_count += 1
                continue
            is_kept = draft.retention.max_events > 0
            # What nodes tell each other and nobody keeps has no place of its own here: a head that moves
            # without events would make the id of another gateway's log look like one of this log.
            is_aside = not is_kept and draft.channel.startswith(CONTROL_CHANNEL_PREFIX)
            event = Event(
                id=self._head if is_aside else self._next_id(),
                channel=draft.channel,
                payload=draft.payload,
                timestamp_ms=draft.timestamp_ms,
                type=draft.type,
                is_retained=is_kept,
            )
            if event.is_retained:
                self._history.append(event, len(draft.payload) + EVENT_OVERHEAD_BYTES, draft.retention)
            if key is not None:
                self._remember_key(key, (event.id, draft.request_fingerprint))
            ids.append(event.id)
            events.append(event)
        if offset is not None and offset.value == DELETED_OFFSET:
            self._offsets.pop(offset.key, None)
        elif offset is not None:
            self._offsets[offset.key] = offset.value
        if events:
            self._delivery.deliver(events)
        return ids

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        self._history.expire()
        pages = {}
        for channel, id in after.items():
            events = self._history.items_after(channel, id, until, limit + 1)
            floor = max(id, self._history.floor(channel))
            pages[channel] = HistoryPage(events[:limit], floor, has_more=len(events) > limit)
        return pages

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        self._history.expire()
        answers: list[SpanIds] = []
        room = MAX_RECENT_IDS
        for span in spans:
            count = min(span.limit, room)
            events = self._history.newest_items(span.channel, span.first, span.before, count)
            ids = [pack_id(event.id) for event in reversed(events)]
            room -= len(ids)
            answers.append(SpanIds(ids, pack_id(self._history.floor(span.channel)), len(ids) == count))
        return answers

    async def read_log_head(self) -> EventId:
        return self._head

    async def read_offset(self, source: str) -> str | None:
        return self._offsets.get(source)

    async def list_partitions(self, source: str) -> list[str]:
        start = f"{source}/"
        return [name.removeprefix(start) for name in self._offsets if name.startswith(start)]

    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        return FencingToken(name, 1)  # nobody else can ask

    async def release_lease(self, fence: FencingToken) -> None:
        pass

    def _next_id(self) -> EventId:
        # A clock that jumps back holds the milliseconds and counts on.
        now, last = self._clock(), self._head
        self._head = EventId(now, 0) if now > last.ms else EventId(last.ms, last.seq + 1)
        return self._head

    def _has_key_conflict(self, draft: Draft) -> bool:
        """Tell whether a draft's key came with another fingerprint before."""
        seen = (
            None
            if draft.deduplication_key is None
            else self._deduplication_keys.get(_digest(draft.channel, draft.deduplication_key))
        )
        return seen is not None and seen[1] not in (None, draft.request_fingerprint)

    def _remember_key(self, key: bytes, first: tuple[EventId, str | None]) -> None:
        self._deduplication_keys[key] = first
        if len(self._deduplication_keys) > MIN_DEDUPLICATION_KEYS:
            self._deduplication_keys.popitem(last=False)


def _digest(channel: str, key: str) -> bytes:
    """Return what stands for a key of a channel, however long it is; no channel's name holds a zero."""
    text = f"{channel}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
