"""The board of ``memory://``: one process's own."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from gateway.bounded import Bounded
from gateway.broker.board import Board, Seat

NOTES = 100_000
"""Notes that are held; the oldest goes first."""

NOTES_BYTES = 64 * 1024 * 1024
"""Bytes of them: a ticket's says which channels it opens."""

NAMES = 100_000
"""Names of seats that are held, likewise."""

SEATS = 200_000
"""Seats of all names together."""


class MemoryBoard(Board):
    """See `gateway.broker.board`. ``clock`` gives unix milliseconds."""

    is_shared = False

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._notes: Bounded[str, tuple[int, bytes]] = Bounded(NOTES, NOTES_BYTES)
        self._seats: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._taken = 0

    async def put(self, name: str, value: bytes, seconds: float) -> None:
        self._notes.put(name, (self._clock() + round(seconds * 1000), value))

    async def get(self, name: str) -> bytes | None:
        until, value = self._notes.get(name, (0, b""))
        if until > self._clock():
            return value
        self._notes.drop(name)
        return None

    async def seats(self, wanted: Sequence[Seat], seconds: float) -> list[bool]:
        now = self._clock()
        return [self._take(seat, now, now + round(seconds * 1000)) for seat in wanted]

    async def leave(self, seats: Sequence[Seat]) -> None:
        for seat in seats:
            members = self._seats.get(seat.name, {})
            self._taken -= members.pop(seat.member, None) is not None
            if not members:
                self._seats.pop(seat.name, None)

    def _take(self, seat: Seat, now: int, until: int) -> bool:
        members = self._seats.setdefault(seat.name, {})
        if seat.member not in members and seat.limit is not None:
            for member in [member for member, end in members.items() if end <= now]:
                del members[member]
                self._taken -= 1
            if len(members) >= seat.limit:
                return False
        self._taken += seat.member not in members
        members[seat.member] = until
        self._seats.move_to_end(seat.name)
        while len(self._seats) > NAMES or self._taken > SEATS:
            self._taken -= len(self._seats.popitem(last=False)[1])
        return True
