"""A short-lived cache of the log's history, so that many resuming streams share one read.

Ten thousand clients that reconnect at once need much the same. The range of a channel that was read is cached
for a few seconds, as entries whose bytes are encoded once. A stream that needs more waits for the next read:
one request to the broker for all channels that are pending when it starts, each from the oldest id that any
stream needs. So the reads grow with the channels and with time, and not with the clients.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from gateway.broker.base import Broker, HistoryPage
from gateway.config.channel_catalog import DeclaredChannel, StreamSchema
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.core.history import merge_by_id, slice_by_id
from gateway.hub.encoded_event import EncodedEvent

MAX_EVENTS_PER_CHANNEL = 512
"""Most events of one channel in one read."""

MAX_EVENTS_PER_READ = 4096
"""Most events of all channels in one read."""

INITIAL_EVENTS_PER_READ = 512
"""The same while the size of events is unknown."""

TARGET_READ_BYTES = 8 * 1024 * 1024
"""Payload bytes that a read should return: one that returns more is followed by reads of fewer events."""

MAX_CHANNELS_PER_READ = 500
"""Most channels in one read."""

MAX_PENDING_CHANNELS = 20_000
"""Channels that may wait for a read."""

MAX_CONCURRENT_READS = 8
"""Reads that may run at once."""

READ_TIMEOUT_SECONDS = 5.0
"""Seconds that one read may take."""

CACHE_SECONDS = 5.0
"""How long a range is cached."""

MAX_CACHED_BYTES = 64 * 1024 * 1024
"""Payload bytes of all cached ranges; running reads come on top."""

T = TypeVar("T")


@dataclass(slots=True)
class _CachedRange:
    """The events of a channel from ``low`` (exclusive) to ``high``, except expired ones up to ``floor``."""

    stream_schema: StreamSchema
    """That of its entries: a reload may change the channel's."""
    low: EventId
    high: EventId
    floor: EventId
    events: list[EncodedEvent]
    payload_bytes: int
    created_at: float


@dataclass(slots=True)
class _Pending:
    declared: DeclaredChannel
    after: EventId


@dataclass(frozen=True, slots=True)
class _InFlight:
    stream_schema: StreamSchema
    after: EventId
    until: EventId
    task: asyncio.Task[None]

    def covers(self, stream_schema: StreamSchema, after: EventId, until: EventId) -> bool:
        """Tell whether the read covers an interval."""
        return self.stream_schema is stream_schema and self.after <= after and self.until >= until


@dataclass(frozen=True, slots=True)
class HistoryView:
    """The cached history of one subscription: merged ``events`` up to ``until``."""

    events: Sequence[EncodedEvent]
    until: EventId
    floors: Mapping[str, EventId]
    """By channel, if events after the requested id have expired: the id of the last of them."""
    oldest: Mapping[str, EventId]
    """For the same channels: the first event that is left, if it is cached."""


class HistoryCache:
    """Reads history for streams and caches it. Everything runs on the event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._ranges: dict[str, _CachedRange] = {}
        self._cached_bytes = 0
        self._pending: dict[str, _Pending] = {}
        self._in_flight: dict[str, _InFlight] = {}
        self._read_until = EventId(0, 0)
        self._next_read: asyncio.Task[None] | None = None
        self._latest_task: asyncio.Task[EventId] | None = None
        self._events_per_read = INITIAL_EVENTS_PER_READ
        self._read_semaphore = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None

    def try_cached(
        self, topics: Mapping[str, DeclaredChannel], after: EventId, until: EventId, limit: int
    ) -> HistoryView | None:
        """Return the first ``limit`` events with ``after < id <= until``; None if `load` must come first."""
        if not all(self._is_cached(name, each.stream_schema, after, until) for name, each in topics.items()):
            return None
        ranges = {name: self._ranges[name] for name in topics}
        reach = min((until, *(cached.high for cached in ranges.values())))
        entries = merge_by_id(
            [slice_by_id(cached.events, after, reach, limit + 1) for cached in ranges.values()], limit + 1
        )
        if len(entries) > limit:
            entries.pop()
            reach = entries[-1].id
        floors = {name: cached.floor for name, cached in ranges.items() if cached.floor > after}
        oldest = {
            name: first[0].id
            for name, floor in floors.items()
            if (first := slice_by_id(ranges[name].events, floor, ranges[name].high, 1))
        }
        return HistoryView(entries, reach, floors, oldest)

    async def load(self, topics: Mapping[str, DeclaredChannel], after: EventId, until: EventId) -> None:
        """Read what `try_cached` lacks, or a part of it. Raises Unavailable. Cancelling is safe."""
        reads: set[asyncio.Task[None]] = set()
        for name, declared in topics.items():
            if self._is_cached(name, declared.stream_schema, after, until):
                continue
            in_flight = self._in_flight.get(name)
            if in_flight is not None and in_flight.covers(declared.stream_schema, after, until):
                reads.add(in_flight.task)
                continue
            pending = self._pending.get(name)
            if self._next_read is None:
                self._next_read = self._start_task(self._run_read())
            if pending is None and len(self._pending) >= MAX_PENDING_CHANNELS:
                raise Unavailable("too many streams wait for the log")
            if pending is None or pending.declared.stream_schema is not declared.stream_schema:
                # Streams that wait for the old schema will call again.
                pending = self._pending[name] = _Pending(declared, after)
            pending.after = min(pending.after, self._read_start(name, after))
            reads.add(self._next_read)
        self._read_until = max(self._read_until, until)
        for read in reads:
            await asyncio.shield(read)

    async def latest(self) -> EventId:
        """Return the id of the log's last event. Raises Unavailable. Cancelling is safe."""
        if self._latest_task is None:
            self._latest_task = self._start_task(self._read_latest())
        return await asyncio.shield(self._latest_task)

    async def close(self) -> None:
        """Cancel all reads; harmless when repeated."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_cached(self, name: str, stream_schema: StreamSchema, after: EventId, until: EventId) -> bool:
        """Tell whether the next event after an id, or everything up to ``until``, is cached."""
        cached = self._ranges.get(name)
        if cached is None or cached.stream_schema is not stream_schema:
            return False
        return cached.low <= after and (cached.high >= until or after < cached.high)

    def _read_start(self, name: str, after: EventId) -> EventId:
        """Return the id from which to read for a stream that needs more than the cached range.

        As far again as the range falls short: other streams will need even older events, and so the range
        doubles with every read.
        """
        cached, in_flight = self._ranges.get(name), self._in_flight.get(name)
        low = in_flight.after if in_flight is not None else cached.low if cached is not None else after
        return after if after >= low else EventId(max(0, 2 * after.ms - low.ms - 1), 0)

    async def _run_read(self) -> None:
        async with self._read_semaphore:
            # From here on, further channels wait for another read.
            task, self._next_read = self._next_read, None
            assert task is not None
            names = list(islice(self._pending, min(MAX_CHANNELS_PER_READ, self._events_per_read)))
            batch = {name: self._pending.pop(name) for name in names}
            until = self._read_until
            in_flight = {
                name: _InFlight(pending.declared.stream_schema, pending.after, until, task)
                for name, pending in batch.items()
            }
            self._in_flight.update(in_flight)
            try:
                # Fewer events of each if there are many channels: a read must not fill the memory.
                limit = min(MAX_EVENTS_PER_CHANNEL, self._events_per_read // len(batch))
                after = {name: pending.after for name, pending in batch.items()}
                pages = await _with_timeout(self._broker.read(after, until, limit))
            finally:
                for name, each in in_flight.items():
                    if self._in_flight.get(name) is each:
                        del self._in_flight[name]
        self._adapt_read_size(pages)
        now = asyncio.get_running_loop().time()
        for name, page in pages.items():
            self._store_page(name, batch[name], page, until, now)
        self._evict(len(pages))

    def _adapt_read_size(self, pages: Mapping[str, HistoryPage]) -> None:
        """Limit the next read to as many events of this read's size as fit into `TARGET_READ_BYTES`."""
        events = sum(len(page.events) for page in pages.values())
        size = sum(len(event.payload) for page in pages.values() for event in page.events)
        if size > TARGET_READ_BYTES:
            self._events_per_read = max(1, events * TARGET_READ_BYTES // size)
        elif 2 * events >= self._events_per_read and 2 * size < TARGET_READ_BYTES:
            self._events_per_read = min(MAX_EVENTS_PER_READ, 2 * self._events_per_read)

    def _store_page(
        self, name: str, pending: _Pending, page: HistoryPage, until: EventId, now: float
    ) -> None:
        entries = [EncodedEvent(event, pending.declared) for event in page.events]
        size = sum(len(event.payload) for event in page.events)
        high = page.events[-1].id if page.has_more else until
        cached = self._ranges.pop(name, None)
        if cached is not None:
            self._cached_bytes -= cached.payload_bytes
        schema = pending.declared.stream_schema
        goes_on = (
            cached is not None
            and cached.stream_schema is schema
            and cached.high == pending.after == page.floor
        )
        if cached is not None and goes_on and cached.payload_bytes < MAX_CACHED_BYTES // 8:
            cached.events += entries
            cached.high = high
            cached.payload_bytes += size
        else:
            cached = _CachedRange(schema, pending.after, high, page.floor, entries, size, now)
        self._ranges[name] = cached
        self._cached_bytes += cached.payload_bytes

    def _evict(self, fresh: int) -> None:
        """Evict ranges beyond the limit, except the ``fresh`` newest ones, for which streams wait."""
        while self._cached_bytes > MAX_CACHED_BYTES and len(self._ranges) > fresh:
            self._remove_range(next(iter(self._ranges)))
        if self._sweep_timer is None and self._ranges:
            self._sweep_timer = asyncio.get_running_loop().call_later(CACHE_SECONDS / 2, self._evict_expired)

    def _evict_expired(self) -> None:
        self._sweep_timer = None
        made_after = asyncio.get_running_loop().time() - CACHE_SECONDS
        for name in [name for name, cached in self._ranges.items() if cached.created_at <= made_after]:
            self._remove_range(name)
        self._evict(0)

    def _remove_range(self, name: str) -> None:
        self._cached_bytes -= self._ranges.pop(name).payload_bytes

    async def _read_latest(self) -> EventId:
        async with self._read_semaphore:
            self._latest_task = None  # a later call must not get an answer from before it
            return await _with_timeout(self._broker.read_log_head())

    def _start_task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="log read")
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio logs nothing if no stream waits any more


async def _with_timeout(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            return await call
    except TimeoutError:
        raise Unavailable("the log did not answer in time") from None
