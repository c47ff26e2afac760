"""Finds where a stream with ``last=N`` begins: the id after which its channels have exactly N events.

Only ids are read, no events. Each requested channel has a cached *tail*: the ids of its newest events, which
serves requests with any N. Before each answer a read updates the tail, and extends it if it is too short.

One read runs at a time, followed by a pause of the same length: a flood takes half of the log's time at the
most, and none of the reads of resuming streams (`history_cache`). The channels of different addresses take
turns. A request that cannot be served within `DEADLINE_SECONDS` fails with Unavailable, and one whose client
has left is dropped.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from gateway.broker.base import Broker, HistorySpan, SpanIds
from gateway.core.errors import Unavailable
from gateway.core.event import EventId, pack_id, unpack_id

log = structlog.get_logger("gateway.hub")

MIN_FIRST_READ_IDS = 16
"""Fewest ids of each channel in the first read; if they are too few, twice as many, and so on."""

MAX_FIRST_READ_IDS = 1000
"""Most ids of each channel in the first read."""

MAX_CHANNELS_PER_READ = 200
"""Channels in one read."""

ADDRESS_SHARE_CHANNELS = 50
"""Channels of one address in one read, if others wait, too."""

MAX_PENDING_CHANNELS = 20_000
"""Channels that may wait for a read."""

MAX_PENDING_CHANNELS_PER_ADDRESS = 2000
"""Channels that the requests of one address may wait for."""

DEADLINE_SECONDS = 3.0
"""Seconds after which a request fails."""

MAX_TAILS = 10_000
"""Channels whose tails are cached."""

MAX_TAIL_IDS = 500_000
"""Ids in all tails together: 8 bytes each."""

_LOWEST_ID = EventId(0, 0)
_SHUTTING_DOWN = "the gateway is shutting down"


class _Tail:
    """The ids of a channel's newest events, in order."""

    __slots__ = ("floor", "ids", "is_complete", "read_number")

    def __init__(self) -> None:
        self.ids = array("q")
        self.floor = 0
        self.is_complete = False
        """Whether the log has no older ids."""
        self.read_number = 0
        """The number of the last read that updated it."""

    def update(self, recent: SpanIds, max_events: int) -> None:
        """Append newer ids, given with its last one; the channel keeps at most ``max_events``."""
        newer = array("q", reversed(recent.ids))
        self.floor = max(self.floor, recent.floor)
        if recent.is_cut or not self.ids or not newer or newer[0] != self.ids[-1]:
            # Not contiguous: there were too many new ids, or the log no longer has the last one.
            self.ids = newer
            self.is_complete = not recent.is_cut
        else:
            self.ids.extend(newer[1:])
            if len(self.ids) > 2 * max_events:
                self.ids, self.is_complete = self.ids[-max_events:], False

    def prepend_older(self, span: HistorySpan, recent: SpanIds) -> None:
        """Prepend the ids before its first one."""
        if span.before is not None and self.ids and pack_id(span.before) == self.ids[0]:
            self.ids = array("q", reversed(recent.ids)) + self.ids
            self.is_complete = not recent.is_cut

    def has_newest(self, count: int) -> bool:
        """Tell whether it has the newest ``count`` ids, or all of the log's."""
        return self.is_complete or len(self.ids) >= count or (bool(self.ids) and self.ids[0] <= self.floor)

    def start_position(self, count: int) -> int:
        """Return the position of the oldest of the newest ``count`` ids whose event is in the log."""
        return max(0, len(self.ids) - count, bisect_right(self.ids, self.floor))


@dataclass(slots=True, eq=False)
class _PendingChannel:
    """A channel that requests wait for."""

    depth: int
    max_events: int
    waiters: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: str | None = None


class RecentIds:
    """Answers ``last=N`` requests from cached tails. Everything runs on the event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._id_count = 0
        self._pending: dict[str, _PendingChannel] = {}
        self._queues_by_address: OrderedDict[Hashable, dict[str, None]] = OrderedDict()
        self._read_count = 0
        self._reader_task: asyncio.Task[None] | None = None

    async def find_start(
        self, max_events: Mapping[str, int], count: int, address: Hashable = None
    ) -> EventId | None:
        """Return the id after which some channels have exactly ``count`` events.

        ``max_events`` is how many events each channel keeps; requests of different addresses take turns. If
        there are fewer events, the id is before all of them; None if there are none. Raises Unavailable.
        Cancelling drops the request.
        """
        limits = {name: min(count, most) for name, most in max_events.items() if min(count, most) > 0}
        # Twice the share of each; a channel that has most of the events is read further.
        depth = MIN_FIRST_READ_IDS + 2 * count // max(1, len(limits))
        depths = {name: min(limit, depth, MAX_FIRST_READ_IDS) for name, limit in limits.items()}
        since = self._read_count
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while True:
                    lacking = {
                        name: (depth, max_events[name])
                        for name, depth in depths.items()
                        if not self._is_fresh(name, depth, since)
                    }
                    if lacking:
                        await self._wait_for_read(lacking, address)
                        continue
                    first, short = self._count_back(limits, count)
                    if not short:
                        return None if first is None else unpack_id(first - 1)
                    for name in short:
                        depths[name] = min(2 * depths[name], limits[name])
        except TimeoutError:
            raise Unavailable(f"the log did not name its last events within {DEADLINE_SECONDS:g} s") from None

    async def close(self) -> None:
        """Cancel the running read; harmless when repeated."""
        if self._reader_task is not None:
            self._reader_task.cancel()
            await asyncio.gather(self._reader_task, return_exceptions=True)

    def _is_fresh(self, name: str, depth: int, since: int) -> bool:
        tail = self._tails.get(name)
        return tail is not None and tail.read_number > since and tail.has_newest(depth)

    def _count_back(self, limits: Mapping[str, int], count: int) -> tuple[int | None, list[str]]:
        """Return the first id of the last ``count``, and the channels whose tails are too short."""
        tails = {name: self._tails[name] for name in limits}
        starts = {name: tail.start_position(limits[name]) for name, tail in tails.items()}
        first = _nth_newest([(tail.ids, starts[name]) for name, tail in tails.items()], count)
        short = [
            name
            for name, tail in tails.items()
            if not tail.has_newest(limits[name]) and (first is None or tail.ids[starts[name]] > first)
        ]
        if first is None:  # fewer than that
            found = [tail.ids[starts[name]] for name, tail in tails.items() if starts[name] < len(tail.ids)]
            first = min(found, default=None)
        return first, short

    async def _wait_for_read(self, wanted: Mapping[str, tuple[int, int]], address: Hashable) -> None:
        """Wait for a read of channels, each with its depth and limit of events. Raises Unavailable."""
        queue = self._queues_by_address.setdefault(address, {})
        new = sum(name not in self._pending for name in wanted)
        if len(self._pending) + new > MAX_PENDING_CHANNELS or (
            address is not None and len(queue) + new > MAX_PENDING_CHANNELS_PER_ADDRESS
        ):
            raise Unavailable("too many requests for last= wait for the log")
        batch = []
        for name, (depth, limit) in wanted.items():
            pending = self._pending.get(name)
            if pending is None:
                pending = self._pending[name] = _PendingChannel(depth, limit)
            pending.depth, pending.max_events = max(pending.depth, depth), max(pending.max_events, limit)
            pending.waiters += 1
            queue[name] = None
            batch.append((name, pending))
        if self._reader_task is None:
            self._reader_task = asyncio.create_task(self._read_loop(), name="last ids")
        try:
            for _, pending in batch:
                await pending.done.wait()
                if pending.error is not None:
                    raise Unavailable(pending.error)
        finally:
            for name, pending in batch:
                pending.waiters -= 1
                if not pending.waiters and self._pending.get(name) is pending:
                    del self._pending[name]
                    queue.pop(name, None)

    async def _read_loop(self) -> None:
        """Read while requests wait."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take_batch():
                began, error = loop.time(), None
                try:
                    await self._read_batch(batch)
                except asyncio.CancelledError:
                    error = _SHUTTING_DOWN
                    raise
                except Unavailable as unavailable:
                    error = unavailable.message
                except Exception:
                    log.exception("last_events_lookup_failed")
                    error = "the last events cannot be found; the gateway's logs say why"
                finally:
                    _complete(batch, error)
                await asyncio.sleep(loop.time() - began)
        finally:
            self._reader_task = None
            self._queues_by_address.clear()
            _complete(self._pending, _SHUTTING_DOWN)

    def _take_batch(self) -> dict[str, _PendingChannel]:
        """Take the channels of the next read, a share of each address in turn."""
        taken: dict[str, _PendingChannel] = {}
        while self._queues_by_address and len(taken) < MAX_CHANNELS_PER_READ:
            address, queue = self._queues_by_address.popitem(last=False)
            share = min(ADDRESS_SHARE_CHANNELS, MAX_CHANNELS_PER_READ - len(taken)) + len(taken)
            while queue and len(taken) < share:
                name = next(iter(queue))
                del queue[name]
                pending = self._pending.pop(name, None)  # another address may have requested it, too
                if pending is not None:
                    taken[name] = pending
            if queue:
                self._queues_by_address[address] = queue
        return taken

    async def _read_batch(self, batch: Mapping[str, _PendingChannel]) -> None:
        """Update the tails of channels, and extend those that are too short. Raises Unavailable."""
        self._read_count += 1
        number = self._read_count
        newer, older = [], []
        for name, pending in batch.items():
            tail = self._tails.get(name)
            if tail is None or not tail.ids:
                newer.append(HistorySpan(name, _LOWEST_ID, None, pending.depth))
                continue
            newer.append(HistorySpan(name, unpack_id(tail.ids[-1]), None, pending.depth + 1))
            if not tail.has_newest(pending.depth):
                older.append(
                    HistorySpan(name, _LOWEST_ID, unpack_id(tail.ids[0]), pending.depth - len(tail.ids))
                )
        spans = newer + older
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                answers = await self._broker.read_recent_ids(spans)
        except TimeoutError:
            raise Unavailable("the log did not answer in time") from None
        for position, (span, recent) in enumerate(zip(spans, answers, strict=True)):
            if recent.is_cut and not recent.ids:
                continue  # the limit of the whole answer was reached before
            name = span.channel
            tail = self._tails.pop(name, None) or _Tail()
            self._id_count -= len(tail.ids)
            if position < len(newer):
                tail.update(recent, batch[name].max_events)
                tail.read_number = number
            else:
                tail.prepend_older(span, recent)
            self._tails[name] = tail
            self._id_count += len(tail.ids)
        # The oldest first: requests wait for those that were just read.
        while len(self._tails) > MAX_TAILS or (self._id_count > MAX_TAIL_IDS and len(self._tails) > 1):
            self._id_count -= len(self._tails.popitem(last=False)[1].ids)


def _complete(batch: Mapping[str, _PendingChannel], error: str | None) -> None:
    for pending in batch.values():
        if not pending.done.is_set():
            pending.error = error
            pending.done.set()


def _nth_newest(tails: "Sequence[tuple[array[int], int]]", count: int) -> int | None:
    """Return the ``count``-th newest id of several sorted arrays, each from a position on.

    None if there are fewer. A binary search by value, so the cost does not grow with ``count``.
    """
    filled = [(ids, start) for ids, start in tails if start < len(ids)]
    if not filled or sum(len(ids) - start for ids, start in filled) < count:
        return None
    low, high = min(ids[start] for ids, start in filled), max(ids[-1] for ids, _ in filled)
    while low < high:  # the greatest number that at least ``count`` ids are not below
        middle = (low + high + 1) // 2
        if sum(len(ids) - max(start, bisect_left(ids, middle)) for ids, start in filled) >= count:
            low = middle
        else:
            high = middle - 1
    return low
