"""The board of ``memory://``: one process's own."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.broker.board import Board, Seat

NOTES = 100_000
"""Notes that are held; the oldest goes first."""


NAMES = 100_000
"""Names of seats that are held, likewise."""


class MemoryBoard(Board):
    """See `gateway.broker.board`. ``clock`` gives unix milliseconds."""

    is_shared = False

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._notes: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._seats: OrderedDict[str, dict[str, int]] = OrderedDict()

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        self._notes[name] = self._clock() + round(seconds * 1000), value
        self._notes.move_to_end(name)
        if len(self._notes) > NOTES:
            self._notes.popitem(last=False)

    async def get(self, name: str) -> bytes | None:
        until, value = self._notes.get(name, (0, b""))
        if until > self._clock():
            return value
        self._notes.pop(name, None)
        return None

    async def seats(self, wanted: Sequence[Seat], seconds: float) -> list[bool]:
        now = self._clock()
        return [self._take(seat, now, now + round(seconds * 1000)) for seat in wanted]

    async def leave(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            members = self._seats.get(seat.name, {})
            members.pop(seat.member, None)
            if not members:
                self._seats.pop(seat.name, None)

    def _take(self, seat: Seat, now: int, until: int) -> bool:
        members = self._seats.setdefault(seat.name, {})
        if seat.member not in members and seat.limit is not None:
            for member in [member for member, end in members.items() if end <= now]:
                del members[member]
            if len(members) >= seat.limit:
                return False
        members[seat.member] = until
        self._seats.move_to_end(seat.name)
        if len(self._seats) > NAMES:
            self._seats.popitem(last=False)
        return True
