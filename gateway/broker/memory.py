"""``memory://``: the log of one process, gone with it."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from gateway.background import UNCOUNTED, Background
from gateway.broker.base import DEDUPLICATION_KEYS, Broker, Deliver, Lost, Page
from gateway.broker.delivery import Delivery
from gateway.broker.memory_board import MemoryBoard
from gateway.clock import unix_ms
from gateway.event import GONE, NOTICE, Cursor, Draft, Event, EventId, Fence
from gateway.history import History

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
        self._keys: OrderedDict[tuple[str, str], EventId] = OrderedDict()
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
    ) -> list[EventId]:
        ids: list[EventId] = []
        events: list[Event] = []
        for draft in drafts:
            seen = self._keys.get((draft.channel, draft.key)) if draft.key is not None else None
            if seen is not None:
                ids.append(seen)
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
            if draft.key is not None:
                self._remember((draft.channel, draft.key), event.id)
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

    async def newest(self, channels: Sequence[str], count: int) -> EventId:
        self._history.expire()
        found = sorted(event.id for channel in channels for event in self._history.newest(channel, count))
        if not found or count <= 0:
            return self._head
        first = found[-count] if len(found) >= count else found[0]
        return EventId(first.ms, first.seq - 1) if first.seq else EventId.before(first.ms)

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

    def _remember(self, key: tuple[str, str], id: EventId) -> None:
        self._keys[key] = id
        if len(self._keys) > DEDUPLICATION_KEYS:
            self._keys.popitem(last=False)
