"""Recent events by channel, in order, under limits of count, age and bytes. Pure.

The memory broker keeps its log in one `HistoryConfig`, the hub the rings of the channels that have
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

MAX_EMPTY_CHANNELS = 100_000
"""How many emptied channels keep a floor of their own; older ones share the highest forgotten."""

_COMPACT_AT_ITEMS = 512
_id_of = attrgetter("id")


class HistoryItem(Protocol):
    """What a history holds: anything with a place in the order and a channel."""

    @property
    def id(self) -> EventId: ...

    @property
    def channel(self) -> str: ...


T = TypeVar("T", bound=HistoryItem)


class _ChannelHistory(Generic[T]):
    """One channel: ``items[start:]`` in id order, and the floor below it."""

    __slots__ = ("first_index", "floor", "is_expiry_scheduled", "items", "max_age_ms")

    def __init__(self, floor: EventId) -> None:
        self.items: list[T] = []  # below start: None, so that nothing that was dropped stays referenced
        self.first_index = 0
        self.floor = floor
        self.max_age_ms: int | None = None
        self.is_expiry_scheduled = False  # has its one entry in the expiry heap

    def __len__(self) -> int:
        return len(self.items) - self.first_index

    def oldest(self) -> T:
        return self.items[self.first_index]

    def pop_oldest(self) -> T:
        item = self.items[self.first_index]
        self.items[self.first_index] = None  # type: ignore[call-overload]  # never looked at again
        self.first_index += 1
        self.floor = item.id
        if self.first_index >= _COMPACT_AT_ITEMS and self.first_index * 2 >= len(self.items):
            del self.items[: self.first_index]
            self.first_index = 0
        return item


def slice_by_id(items: list[T], after: EventId, until: EventId, limit: int, start: int = 0) -> list[T]:
    """Return the first ``limit`` items with ``after < id <= until`` of a list that is in id order."""
    first = bisect_right(items, after, lo=start, key=_id_of)
    last = bisect_right(items, until, lo=first, key=_id_of)
    return items[first : min(last, first + limit)]


def merge_by_id(lists: list[list[T]], limit: int) -> list[T]:
    """Return the first ``limit`` items of lists that are each in id order, in that order."""
    return lists[0][:limit] if len(lists) == 1 else list(islice(heapq.merge(*lists, key=_id_of), limit))


class History(Generic[T]):
    """Recent items of many channels.

    ``start`` is the id before which nothing is known; ``clock`` gives unix milliseconds.
    """

    def __init__(self, *, max_bytes: int, start: EventId, clock: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._channels: dict[str, _ChannelHistory[T]] = {}
        self._channel_and_size_by_id: OrderedDict[EventId, tuple[str, int]] = OrderedDict()
        self._expiry_heap: list[tuple[int, int, str, _ChannelHistory[T]]] = []
        self._heap_sequence = count()
        self._empty_channel_floors: OrderedDict[str, EventId] = OrderedDict()
        self._fallback_floor = start
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._channel_and_size_by_id)

    def set_max_bytes(self, max_bytes: int) -> None:
        """Hold at most so many bytes from the next append on."""
        self._max_bytes = max_bytes

    @property
    def channel_count(self) -> int:
        """How many channels hold at least one item or a floor of their own."""
        return len(self._channels) + len(self._empty_channel_floors)

    def append(self, item: T, size: int, retention: Retention, complete_since: EventId | None = None) -> None:
        """Add the newest item of all (ids must grow), and drop what the limits no longer allow.

        ``opened`` is as of `floor`.
        """
        self.expire()
        channel = item.channel
        log = self._channels.get(channel)
        if log is None:
            log = self._channels[channel] = _ChannelHistory(self.floor(channel, complete_since))
            self._empty_channel_floors.pop(channel, None)
        log.items.append(item)
        log.max_age_ms = retention.max_age_ms
        self._channel_and_size_by_id[item.id] = (channel, size)
        self.total_bytes += size
        while len(log) > retention.max_events:
            self._drop_oldest(log)
        if log.max_age_ms is not None and not log.is_expiry_scheduled:
            self._schedule_expiry(channel, log)
        while self.total_bytes > self._max_bytes:
            name, _ = next(iter(self._channel_and_size_by_id.values()))
            oldest = self._channels[name]
            self._drop_oldest(oldest)
            if not len(oldest):
                self._keep_only_floor(name, oldest.floor)

    def expire(self) -> None:
        """Drop what has grown older than its channel keeps."""
        if not self._expiry_heap:
            return
        now = self._clock()
        while self._expiry_heap and self._expiry_heap[0][0] <= now:
            _, _, channel, log = heapq.heappop(self._expiry_heap)
            if self._channels.get(channel) is not log:
                continue  # the entry outlived its log
            log.is_expiry_scheduled = False
            while len(log) and log.max_age_ms is not None and log.oldest().id.ms + log.max_age_ms <= now:
                self._drop_oldest(log)
            if not len(log):
                self._keep_only_floor(channel, log.floor)
            elif log.max_age_ms is not None:
                self._schedule_expiry(channel, log)

    def floor(self, channel: str, complete_since: EventId | None = None) -> EventId:
        """Return the id after which the channel is whole.

        ``opened`` is from when on the caller appends all of the channel, where that was later than the start:
        a channel without an item costs nothing here.
        """
        log = self._channels.get(channel)
        if log is not None:
            return log.floor
        known = self._empty_channel_floors.get(channel)
        if known is not None:
            return known
        return self._fallback_floor if complete_since is None else max(complete_since, self._fallback_floor)

    def last_id(self, channel: str, until: EventId, complete_since: EventId | None = None) -> EventId:
        """Return the id of the last item up to ``until``; the floor, where that is not held."""
        log = self._channels.get(channel)
        if log is not None:
            position = bisect_right(log.items, until, lo=log.first_index, key=_id_of)
            if position > log.first_index:
                return log.items[position - 1].id
        return self.floor(channel, complete_since)

    def items_after(self, channel: str, after: EventId, until: EventId, limit: int) -> list[T]:
        """Return the first ``limit`` items with ``after < id <= until``."""
        log = self._channels.get(channel)
        return slice_by_id(log.items, after, until, limit, log.first_index) if log is not None else []

    def newest_items(self, channel: str, first: EventId, before: EventId | None, count: int) -> list[T]:
        """Return the last ``count`` items with ``first <= id < before`` (None: no bound), oldest first."""
        log = self._channels.get(channel)
        if log is None or count <= 0:
            return []
        items, start = log.items, log.first_index
        low = bisect_left(items, first, lo=start, key=_id_of)
        high = len(items) if before is None else bisect_left(items, before, lo=low, key=_id_of)
        return items[max(low, high - count) : high]

    def drop_channel(self, channel: str) -> None:
        """Let go of a channel and its floor."""
        self._empty_channel_floors.pop(channel, None)
        log = self._channels.pop(channel, None)
        if log is not None:
            for item in log.items[log.first_index :]:
                self.total_bytes -= self._channel_and_size_by_id.pop(item.id)[1]
            log.items = []  # the expiry heap may hold the log for a while

    def _drop_oldest(self, log: _ChannelHistory[T]) -> None:
        self.total_bytes -= self._channel_and_size_by_id.pop(log.pop_oldest().id)[1]

    def _schedule_expiry(self, channel: str, log: _ChannelHistory[T]) -> None:
        assert log.max_age_ms is not None
        log.is_expiry_scheduled = True
        # The number keeps two entries from being compared by their logs.
        heapq.heappush(
            self._expiry_heap, (log.oldest().id.ms + log.max_age_ms, next(self._heap_sequence), channel, log)
        )
        if len(self._expiry_heap) > 2 * len(self._channels) + _COMPACT_AT_ITEMS:
            self._expiry_heap = [
                entry for entry in self._expiry_heap if self._channels.get(entry[2]) is entry[3]
            ]
            heapq.heapify(self._expiry_heap)

    def _keep_only_floor(self, channel: str, floor: EventId) -> None:
        """Keep only the floor of a channel that holds nothing."""
        self._channels.pop(channel, None)
        self._empty_channel_floors[channel] = floor
        self._empty_channel_floors.move_to_end(channel)
        if len(self._empty_channel_floors) > MAX_EMPTY_CHANNELS:
            _, lost = self._empty_channel_floors.popitem(last=False)
            self._fallback_floor = max(self._fallback_floor, lost)
