"""Recent events by channel, in id order, within limits of count, age and bytes. Pure.

The memory broker keeps its log in a `History`, and the hub the recent events of channels that have streams.
Both must know whether any event after a given id was dropped: every channel has a *floor*, the id after
which nothing was dropped.

How it works. Each channel has a list in id order. A global ordered index finds the oldest event of all for
the byte limit, and a heap with one entry per channel finds the next one to expire. There is no timer:
`append` and `expire` drop what is due, so an idle history keeps its events.
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
"""How many empty channels keep a floor of their own; the others share the highest floor that was dropped."""

_COMPACT_AT_ITEMS = 512
_id_of = attrgetter("id")


class HistoryItem(Protocol):
    """Anything with an id and a channel."""

    @property
    def id(self) -> EventId: ...

    @property
    def channel(self) -> str: ...


T = TypeVar("T", bound=HistoryItem)


class _ChannelHistory(Generic[T]):
    """One channel: ``items[first_index:]`` in id order, and the floor."""

    __slots__ = ("first_index", "floor", "is_expiry_scheduled", "items", "max_age_ms")

    def __init__(self, floor: EventId) -> None:
        self.items: list[T] = []  # None below first_index, so that dropped items are freed
        self.first_index = 0
        self.floor = floor
        self.max_age_ms: int | None = None
        self.is_expiry_scheduled = False  # has an entry in the expiry heap

    def __len__(self) -> int:
        return len(self.items) - self.first_index

    def oldest(self) -> T:
        return self.items[self.first_index]

    def pop_oldest(self) -> T:
        item = self.items[self.first_index]
        self.items[self.first_index] = None  # type: ignore[call-overload]  # never read again
        self.first_index += 1
        self.floor = item.id
        if self.first_index >= _COMPACT_AT_ITEMS and self.first_index * 2 >= len(self.items):
            del self.items[: self.first_index]
            self.first_index = 0
        return item


def slice_by_id(items: list[T], after: EventId, until: EventId, limit: int, start: int = 0) -> list[T]:
    """Return the first ``limit`` items with ``after < id <= until`` of a list in id order."""
    first = bisect_right(items, after, lo=start, key=_id_of)
    last = bisect_right(items, until, lo=first, key=_id_of)
    return items[first : min(last, first + limit)]


def merge_by_id(lists: list[list[T]], limit: int) -> list[T]:
    """Merge lists that are each in id order, and return the first ``limit`` items."""
    return lists[0][:limit] if len(lists) == 1 else list(islice(heapq.merge(*lists, key=_id_of), limit))


class History(Generic[T]):
    """Recent items of many channels.

    ``start`` is the floor of channels without items; ``clock`` returns unix milliseconds.
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
        """Change the byte limit; it applies from the next append on."""
        self._max_bytes = max_bytes

    @property
    def channel_count(self) -> int:
        """Number of channels that have an item or a floor of their own."""
        return len(self._channels) + len(self._empty_channel_floors)

    def append(self, item: T, size: int, retention: Retention, complete_since: EventId | None = None) -> None:
        """Add the newest item of all (ids must grow), and drop items beyond the limits.

        ``complete_since`` is as in `floor`.
        """
        self.expire()
        channel = item.channel
        history = self._channels.get(channel)
        if history is None:
            history = self._channels[channel] = _ChannelHistory(self.floor(channel, complete_since))
            self._empty_channel_floors.pop(channel, None)
        history.items.append(item)
        history.max_age_ms = retention.max_age_ms
        self._channel_and_size_by_id[item.id] = (channel, size)
        self.total_bytes += size
        while len(history) > retention.max_events:
            self._drop_oldest(history)
        if history.max_age_ms is not None and not history.is_expiry_scheduled:
            self._schedule_expiry(channel, history)
        while self.total_bytes > self._max_bytes:
            name, _ = next(iter(self._channel_and_size_by_id.values()))
            oldest = self._channels[name]
            self._drop_oldest(oldest)
            if not len(oldest):
                self._keep_only_floor(name, oldest.floor)

    def expire(self) -> None:
        """Drop items older than the retention of their channel."""
        if not self._expiry_heap:
            return
        now = self._clock()
        while self._expiry_heap and self._expiry_heap[0][0] <= now:
            _, _, channel, history = heapq.heappop(self._expiry_heap)
            if self._channels.get(channel) is not history:
                continue  # an entry of a dropped channel
            history.is_expiry_scheduled = False
            while (
                len(history)
                and history.max_age_ms is not None
                and history.oldest().id.ms + history.max_age_ms <= now
            ):
                self._drop_oldest(history)
            if not len(history):
                self._keep_only_floor(channel, history.floor)
            elif history.max_age_ms is not None:
                self._schedule_expiry(channel, history)

    def floor(self, channel: str, complete_since: EventId | None = None) -> EventId:
        """Return the id after which nothing of the channel was dropped.

        ``complete_since`` is the id after which the caller appends all of the channel, if that is later than
        the history's start: so a channel without an item needs no entry.
        """
        history = self._channels.get(channel)
        if history is not None:
            return history.floor
        known = self._empty_channel_floors.get(channel)
        if known is not None:
            return known
        return self._fallback_floor if complete_since is None else max(complete_since, self._fallback_floor)

    def last_id(self, channel: str, until: EventId, complete_since: EventId | None = None) -> EventId:
        """Return the id of the last item up to ``until``, or the floor if there is none."""
        history = self._channels.get(channel)
        if history is not None:
            position = bisect_right(history.items, until, lo=history.first_index, key=_id_of)
            if position > history.first_index:
                return history.items[position - 1].id
        return self.floor(channel, complete_since)

    def items_after(self, channel: str, after: EventId, until: EventId, limit: int) -> list[T]:
        """Return the first ``limit`` items with ``after < id <= until``."""
        history = self._channels.get(channel)
        return (
            slice_by_id(history.items, after, until, limit, history.first_index)
            if history is not None
            else []
        )

    def newest_items(self, channel: str, first: EventId, before: EventId | None, count: int) -> list[T]:
        """Return the last ``count`` items with ``first <= id < before`` (None: no bound), oldest first."""
        history = self._channels.get(channel)
        if history is None or count <= 0:
            return []
        items, start = history.items, history.first_index
        low = bisect_left(items, first, lo=start, key=_id_of)
        high = len(items) if before is None else bisect_left(items, before, lo=low, key=_id_of)
        return items[max(low, high - count) : high]

    def drop_channel(self, channel: str) -> None:
        """Remove a channel and its floor."""
        self._empty_channel_floors.pop(channel, None)
        history = self._channels.pop(channel, None)
        if history is not None:
            for item in history.items[history.first_index :]:
                self.total_bytes -= self._channel_and_size_by_id.pop(item.id)[1]
            history.items = []  # the expiry heap may hold the history for a while

    def _drop_oldest(self, history: _ChannelHistory[T]) -> None:
        self.total_bytes -= self._channel_and_size_by_id.pop(history.pop_oldest().id)[1]

    def _schedule_expiry(self, channel: str, history: _ChannelHistory[T]) -> None:
        assert history.max_age_ms is not None
        history.is_expiry_scheduled = True
        # The sequence number breaks ties: channel histories cannot be compared.
        heapq.heappush(
            self._expiry_heap,
            (history.oldest().id.ms + history.max_age_ms, next(self._heap_sequence), channel, history),
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
