"""Recent events by channel, in order, under limits of count, age and bytes. Pure.

The memory broker keeps its log in one `History`, the hub the rings of the channels that have
listeners. What both need is the honest answer to "is anything after this id gone": every channel
has a *floor*, the id after which nothing was ever dropped.

How it works. Each channel holds a list in id order; a global ordered index finds the oldest event
of all for the byte limit, and a heap with one entry per channel finds the next that grows too old.
Nothing runs by itself: `append` and the readers expire what is due first, so an idle history holds
what it held and no timer exists.
"""

import heapq
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from itertools import count, islice
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from gateway.core.event import EventId, Retention

EMPTY_CHANNELS = 100_000
"""How many emptied channels keep a floor of their own; older ones share the highest forgotten."""

_COMPACT = 512
_id_of = attrgetter("id")


class Item(Protocol):
    """What a history holds: anything with a place in the order and a channel."""

    @property
    def id(self) -> EventId: ...

    @property
    def channel(self) -> str: ...


T = TypeVar("T", bound=Item)


class _Log(Generic[T]):
    """One channel: ``items[start:]`` in id order, and the floor below it."""

    __slots__ = ("age_ms", "floor", "items", "start", "timed")

    def __init__(self, floor: EventId) -> None:
        self.items: list[T] = []  # below start: None, so that nothing that was dropped stays referenced
        self.start = 0
        self.floor = floor
        self.age_ms: int | None = None
        self.timed = False  # has its one entry in the expiry heap

    def __len__(self) -> int:
        return len(self.items) - self.start

    def oldest(self) -> T:
        return self.items[self.start]

    def pop(self) -> T:
        item = self.items[self.start]
        self.items[self.start] = None  # type: ignore[call-overload]  # never looked at again
        self.start += 1
        self.floor = item.id
        if self.start >= _COMPACT and self.start * 2 >= len(self.items):
            del self.items[: self.start]
            self.start = 0
        return item


def between(items: list[T], after: EventId, until: EventId, limit: int, start: int = 0) -> list[T]:
    """Return the first ``limit`` items with ``after < id <= until`` of a list that is in id order."""
    first = bisect_right(items, after, lo=start, key=_id_of)
    last = bisect_right(items, until, lo=first, key=_id_of)
    return items[first : min(last, first + limit)]


def merged(lists: list[list[T]], limit: int) -> list[T]:
    """Return the first ``limit`` items of lists that are each in id order, in that order."""
    return lists[0][:limit] if len(lists) == 1 else list(islice(heapq.merge(*lists, key=_id_of), limit))


class History(Generic[T]):
    """Recent items of many channels.

    ``start`` is the id before which nothing is known; ``clock`` gives unix milliseconds.
    """

    def __init__(self, *, max_bytes: int, start: EventId, clock: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._logs: dict[str, _Log[T]] = {}
        self._order: OrderedDict[EventId, tuple[str, int]] = OrderedDict()
        self._expiry: list[tuple[int, int, str, _Log[T]]] = []
        self._pushes = count()
        self._floors: OrderedDict[str, EventId] = OrderedDict()
        self._forgotten = start
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._order)

    def limit(self, max_bytes: int) -> None:
        """Hold at most so many bytes from the next append on."""
        self._max_bytes = max_bytes

    @property
    def channels(self) -> int:
        """How many channels hold at least one item or a floor of their own."""
        return len(self._logs) + len(self._floors)

    def append(self, item: T, size: int, retention: Retention, opened: EventId | None = None) -> None:
        """Add the newest item of all (ids must grow), and drop what the limits no longer allow.

        ``opened`` is as of `floor`.
        """
        self.expire()
        channel = item.channel
        log = self._logs.get(channel)
        if log is None:
            log = self._logs[channel] = _Log(self.floor(channel, opened))
            self._floors.pop(channel, None)
        log.items.append(item)
        log.age_ms = retention.age_ms
        self._order[item.id] = (channel, size)
        self.bytes += size
        while len(log) > retention.events:
            self._drop_oldest(log)
        if log.age_ms is not None and not log.timed:
            self._time(channel, log)
        while self.bytes > self._max_bytes:
            name, _ = next(iter(self._order.values()))
            oldest = self._logs[name]
            self._drop_oldest(oldest)
            if not len(oldest):
                self._empty(name, oldest.floor)

    def expire(self) -> None:
        """Drop what has grown older than its channel keeps."""
        if not self._expiry:
            return
        now = self._clock()
        while self._expiry and self._expiry[0][0] <= now:
            _, _, channel, log = heapq.heappop(self._expiry)
            if self._logs.get(channel) is not log:
                continue  # the entry outlived its log
            log.timed = False
            while len(log) and log.age_ms is not None and log.oldest().id.ms + log.age_ms <= now:
                self._drop_oldest(log)
            if not len(log):
                self._empty(channel, log.floor)
            elif log.age_ms is not None:
                self._time(channel, log)

    def floor(self, channel: str, opened: EventId | None = None) -> EventId:
        """Return the id after which the channel is whole.

        ``opened`` is from when on the caller appends all of the channel, where that was later than the start:
        a channel without an item costs nothing here.
        """
        log = self._logs.get(channel)
        if log is not None:
            return log.floor
        known = self._floors.get(channel)
        if known is not None:
            return known
        return self._forgotten if opened is None else max(opened, self._forgotten)

    def last(self, channel: str, until: EventId, opened: EventId | None = None) -> EventId:
        """Return the id of the last item up to ``until``; the floor, where that is not held."""
        log = self._logs.get(channel)
        if log is not None:
            position = bisect_right(log.items, until, lo=log.start, key=_id_of)
            if position > log.start:
                return log.items[position - 1].id
        return self.floor(channel, opened)

    def after(self, channel: str, after: EventId, until: EventId, limit: int) -> list[T]:
        """Return the first ``limit`` items with ``after < id <= until``."""
        log = self._logs.get(channel)
        return between(log.items, after, until, limit, log.start) if log is not None else []

    def newest(self, channel: str, first: EventId, before: EventId | None, count: int) -> list[T]:
        """Return the last ``count`` items with ``first <= id < before`` (None: no bound), oldest first."""
        log = self._logs.get(channel)
        if log is None or count <= 0:
            return []
        items, start = log.items, log.start
        low = bisect_left(items, first, lo=start, key=_id_of)
        high = len(items) if before is None else bisect_left(items, before, lo=low, key=_id_of)
        return items[max(low, high - count) : high]

    def forget(self, channel: str) -> None:
        """Let go of a channel and its floor."""
        self._floors.pop(channel, None)
        log = self._logs.pop(channel, None)
        if log is not None:
            for item in log.items[log.start :]:
                self.bytes -= self._order.pop(item.id)[1]
            log.items = []  # the expiry heap may hold the log for a while

    def _drop_oldest(self, log: _Log[T]) -> None:
        self.bytes -= self._order.pop(log.pop().id)[1]

    def _time(self, channel: str, log: _Log[T]) -> None:
        assert log.age_ms is not None
        log.timed = True
        # The number keeps two entries from being compared by their logs.
        heapq.heappush(self._expiry, (log.oldest().id.ms + log.age_ms, next(self._pushes), channel, log))
        if len(self._expiry) > 2 * len(self._logs) + _COMPACT:
            self._expiry = [entry for entry in self._expiry if self._logs.get(entry[2]) is entry[3]]
            heapq.heapify(self._expiry)

    def _empty(self, channel: str, floor: EventId) -> None:
        """Keep only the floor of a channel that holds nothing."""
        self._logs.pop(channel, None)
        self._floors[channel] = floor
        self._floors.move_to_end(channel)
        if len(self._floors) > EMPTY_CHANNELS:
            _, lost = self._floors.popitem(last=False)
            self._forgotten = max(self._forgotten, lost)
