"""``memory://``: the log of one process, gone with it."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from gateway.broker.base import (
    DEDUPLICATION_KEYS,
    RECENT_IDS,
    Broker,
    Deliver,
    Lost,
    Page,
    Recent,
    Span,
)
from gateway.broker.delivery import Delivery
from gateway.broker.shared_store import Board, Seat
from gateway.core.bounded import Bounded
from gateway.core.clock import unix_ms
from gateway.core.errors import KeyReused
from gateway.core.event import GONE, NOTICE, Appended, Cursor, Draft, Event, EventId, Fence, pack
from gateway.core.history import History
from gateway.observability.background import UNCOUNTED, Background

# The board of ``memory://``: one process's own.

NOTES = 100_000
"""Notes that are held; the oldest goes first."""

NOTES_BYTES = 64 * 1024 * 1024
"""Bytes of them: a ticket's says which channels it opens."""

NAMES = 100_000
"""Names of seats that are held, likewise."""

SEATS = 200_000
"""Seats of all names together."""


class MemoryBoard(Board):
    """See `gateway.broker.shared_store`. ``clock`` gives unix milliseconds."""

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


EVENT_OVERHEAD = 400
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
        background: Background = UNCOUNTED,
    ) -> None:
        self._clock = clock
        self._head = EventId(clock(), 0)
        self._history: History[Event] = History(max_bytes=history_bytes, start=self._head, clock=clock)
        self._keys: OrderedDict[bytes, tuple[EventId, str | None]] = OrderedDict()
        self._cursors: dict[str, str] = {}
        self._delivery = Delivery(background)
        self.board = MemoryBoard(clock)

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return True

    def limit(self, history_bytes: int) -> None:
        """Keep at most so many bytes of history, all channels together."""
        self._history.limit(history_bytes)

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self._delivery.stop()

    def follow(self, deliver: Deliver, lost: Lost) -> None:
        self._delivery.follow(deliver, lost)

    async def append(
        self, drafts: Sequence[Draft], cursor: Cursor | None = None, fence: Fence | None = None
    ) -> Appended:
        ids = Appended()
        events: list[Event] = []
        if any(draft.fingerprint is not None and self._is_other(draft) for draft in drafts):
            raise KeyReused
        for draft in drafts:
            key = None if draft.key is None else _digest(draft.channel, draft.key)
            seen = None if key is None else self._keys.get(key)
            if seen is not None:
                ids.append(seen[0])
                ids.duplicates += 1
                continue
            is_kept = draft.retention.events > 0
            # What nodes tell each other and nobody keeps has no place of its own here: a head that moves
            # without events would make the id of another gateway's log look like one of this log.
            is_aside = not is_kept and draft.channel.startswith(NOTICE)
            event = Event(
                id=self._head if is_aside else self._next_id(),
                channel=draft.channel,
                payload=draft.payload,
                timestamp=draft.timestamp,
                type=draft.type,
                kept=is_kept,
            )
            if event.kept:
                self._history.append(event, len(draft.payload) + EVENT_OVERHEAD, draft.retention)
            if key is not None:
                self._remember(key, (event.id, draft.fingerprint))
            ids.append(event.id)
            events.append(event)
        if cursor is not None and cursor.position == GONE:
            self._cursors.pop(cursor.source, None)
        elif cursor is not None:
            self._cursors[cursor.source] = cursor.position
        if events:
            self._delivery.deliver(events)
        return ids

    async def read(self, after: Mapping[str, EventId], until: EventId, limit: int) -> Mapping[str, Page]:
        self._history.expire()
        pages = {}
        for channel, id in after.items():
            events = self._history.after(channel, id, until, limit + 1)
            floor = max(id, self._history.floor(channel))
            pages[channel] = Page(events[:limit], floor, more=len(events) > limit)
        return pages

    async def recent(self, spans: Sequence[Span]) -> Sequence[Recent]:
        self._history.expire()
        answers: list[Recent] = []
        room = RECENT_IDS
        for span in spans:
            count = min(span.limit, room)
            events = self._history.newest(span.channel, span.first, span.before, count)
            ids = [pack(event.id) for event in reversed(events)]
            room -= len(ids)
            answers.append(Recent(ids, pack(self._history.floor(span.channel)), len(ids) == count))
        return answers

    async def latest(self) -> EventId:
        return self._head

    async def cursor(self, source: str) -> str | None:
        return self._cursors.get(source)

    async def parts(self, source: str) -> list[str]:
        start = f"{source}/"
        return [name.removeprefix(start) for name in self._cursors if name.startswith(start)]

    async def lease(self, name: str, seconds: float) -> Fence | None:
        return Fence(name, 1)  # nobody else can ask

    async def release(self, fence: Fence) -> None:
        pass

    def _next_id(self) -> EventId:
        # A clock that jumps back holds the milliseconds and counts on.
        now, last = self._clock(), self._head
        self._head = EventId(now, 0) if now > last.ms else EventId(last.ms, last.seq + 1)
        return self._head

    def _is_other(self, draft: Draft) -> bool:
        """Tell whether a draft's key came with another fingerprint before."""
        seen = None if draft.key is None else self._keys.get(_digest(draft.channel, draft.key))
        return seen is not None and seen[1] not in (None, draft.fingerprint)

    def _remember(self, key: bytes, first: tuple[EventId, str | None]) -> None:
        self._keys[key] = first
        if len(self._keys) > DEDUPLICATION_KEYS:
            self._keys.popitem(last=False)


def _digest(channel: str, key: str) -> bytes:
    """Return what stands for a key of a channel, however long it is; no channel's name holds a zero."""
    text = f"{channel}\0{key}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).digest()
