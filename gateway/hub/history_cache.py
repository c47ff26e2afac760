"""Reads of the log that many streams share.

Ten thousand clients that come back at once ask for much the same. What was read of a channel stays on a
*shelf* for a few seconds, as entries whose bytes are encoded once; who asks for a part of it is
served from there. Whoever needs more says so and waits for the next *flight*: one read of the
broker for all channels that were asked for until it started, each from the oldest id that anybody
needs. So the reads grow with the channels and with time, and not with the clients.
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
"""The same before anything is known of the size of events."""

TARGET_READ_BYTES = 8 * 1024 * 1024
"""Payload bytes that one read aims for: those that bring more are followed by reads of fewer events."""

MAX_CHANNELS_PER_READ = 500
"""Most channels in one read."""

MAX_PENDING_CHANNELS = 20_000
"""Channels that may wait for a read."""

MAX_CONCURRENT_READS = 8
"""Reads that may be under way at once."""

READ_TIMEOUT_SECONDS = 5.0
"""Seconds that one read may take."""

CACHE_SECONDS = 5.0
"""How long what was read is held for others."""

MAX_CACHED_BYTES = 64 * 1024 * 1024
"""Payload bytes on all shelves together; what is read right now comes on top."""

T = TypeVar("T")


@dataclass(slots=True)
class _CachedRange:
    """One channel from ``low`` (exclusive) to ``high``; whole, but for what ``floor`` says is gone."""

    stream_schema: StreamSchema
    """That of its entries: after a reload streams may want another one."""
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
        """Tell whether it brings all of an interval."""
        return self.stream_schema is stream_schema and self.after <= after and self.until >= until


@dataclass(frozen=True, slots=True)
class HistoryView:
    """What is held for one subscription: merged ``entries`` that lead up to ``until``."""

    events: Sequence[EncodedEvent]
    until: EventId
    floors: Mapping[str, EventId]
    """Of each channel that lost events after the id asked for: the last that is gone."""
    oldest: Mapping[str, EventId]
    """Of the same channels: the first that is still held, if it is in reach."""


class HistoryCache:
    """See the module's docstring."""

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
        """Return the first ``limit`` entries with ``after < id <= until``; None if `load` must come first."""
        if not all(self._is_cached(name, each.stream_schema, after, until) for name, each in topics.items()):
            return None
        shelves = {name: self._ranges[name] for name in topics}
        reach = min((until, *(shelf.high for shelf in shelves.values())))
        entries = merge_by_id(
            [slice_by_id(shelf.events, after, reach, limit + 1) for shelf in shelves.values()], limit + 1
        )
        if len(entries) > limit:
            entries.pop()
            reach = entries[-1].id
        floors = {name: shelf.floor for name, shelf in shelves.items() if shelf.floor > after}
        oldest = {
            name: first[0].id
            for name, floor in floors.items()
            if (first := slice_by_id(shelves[name].events, floor, shelves[name].high, 1))
        }
        return HistoryView(entries, reach, floors, oldest)

    async def load(self, topics: Mapping[str, DeclaredChannel], after: EventId, until: EventId) -> None:
        """Get hold of what `view` lacks, or of a part of it. Raises Unavailable. Cancelling is safe."""
        flights: set[asyncio.Task[None]] = set()
        for name, declared in topics.items():
            if self._is_cached(name, declared.stream_schema, after, until):
                continue
            flying = self._in_flight.get(name)
            if flying is not None and flying.covers(declared.stream_schema, after, until):
                flights.add(flying.task)
                continue
            want = self._pending.get(name)
            if self._next_read is None:
                self._next_read = self._start_task(self._run_read())
            if want is None and len(self._pending) >= MAX_PENDING_CHANNELS:
                raise Unavailable("too many streams wait for the log")
            if (
                want is None or want.declared.stream_schema is not declared.stream_schema
            ):  # who wanted the other one asks again
                want = self._pending[name] = _Pending(declared, after)
            want.after = min(want.after, self._read_start(name, after))
            flights.add(self._next_read)
        self._read_until = max(self._read_until, until)
        for flight in flights:
            await asyncio.shield(flight)

    async def latest(self) -> EventId:
        """Return what `BrokerConfig.latest` does. Raises Unavailable. Cancelling is safe."""
        if self._latest_task is None:
            self._latest_task = self._start_task(self._read_latest())
        return await asyncio.shield(self._latest_task)

    async def close(self) -> None:
        """End what is under way; harmless when repeated."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_cached(self, name: str, stream_schema: StreamSchema, after: EventId, until: EventId) -> bool:
        """Tell whether a shelf holds the next event after an id, or all there is up to ``until``."""
        shelf = self._ranges.get(name)
        if shelf is None or shelf.stream_schema is not stream_schema:
            return False
        return shelf.low <= after and (shelf.high >= until or after < shelf.high)

    def _read_start(self, name: str, after: EventId) -> EventId:
        """Return from where to read for somebody who needs more than a shelf reaches back.

        As far again as it falls short: others will come from further back still, and with every read
        the reach doubles.
        """
        shelf, flying = self._ranges.get(name), self._in_flight.get(name)
        low = flying.after if flying is not None else shelf.low if shelf is not None else after
        return after if after >= low else EventId(max(0, 2 * after.ms - low.ms - 1), 0)

    async def _run_read(self) -> None:
        async with self._read_semaphore:
            task, self._next_read = (
                self._next_read,
                None,
            )  # from here on, whoever wants more waits for another one
            assert task is not None
            names = list(islice(self._pending, min(MAX_CHANNELS_PER_READ, self._events_per_read)))
            wants = {name: self._pending.pop(name) for name in names}
            until = self._read_until
            flying = {
                name: _InFlight(want.declared.stream_schema, want.after, until, task)
                for name, want in wants.items()
            }
            self._in_flight.update(flying)
            try:
                # Few of each where many channels are asked for: a flight must not fill the memory.
                limit = min(MAX_EVENTS_PER_CHANNEL, self._events_per_read // len(wants))
                after = {name: want.after for name, want in wants.items()}
                pages = await _with_timeout(self._broker.read(after, until, limit))
            finally:
                for name, each in flying.items():
                    if self._in_flight.get(name) is each:
                        del self._in_flight[name]
        self._adapt_read_size(pages)
        now = asyncio.get_running_loop().time()
        for name, page in pages.items():
            self._store_page(name, wants[name], page, until, now)
        self._evict(len(pages))

    def _adapt_read_size(self, pages: Mapping[str, HistoryPage]) -> None:
        """Let the next read ask for as many events of this read's kind as `TARGET_READ_BYTES` hold."""
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
        shelf = self._ranges.pop(name, None)
        if shelf is not None:
            self._cached_bytes -= shelf.payload_bytes
        form = pending.declared.stream_schema
        goes_on = (
            shelf is not None and shelf.stream_schema is form and shelf.high == pending.after == page.floor
        )
        if shelf is not None and goes_on and shelf.payload_bytes < MAX_CACHED_BYTES // 8:
            shelf.events += entries
            shelf.high = high
            shelf.payload_bytes += size
        else:
            shelf = _CachedRange(form, pending.after, high, page.floor, entries, size, now)
        self._ranges[name] = shelf
        self._cached_bytes += shelf.payload_bytes

    def _evict(self, fresh: int) -> None:
        """Keep the limit; the ``fresh`` newest shelves stay, for those who wait for them right now."""
        while self._cached_bytes > MAX_CACHED_BYTES and len(self._ranges) > fresh:
            self._remove_range(next(iter(self._ranges)))
        if self._sweep_timer is None and self._ranges:
            self._sweep_timer = asyncio.get_running_loop().call_later(CACHE_SECONDS / 2, self._evict_expired)

    def _evict_expired(self) -> None:
        self._sweep_timer = None
        made_after = asyncio.get_running_loop().time() - CACHE_SECONDS
        for name in [name for name, shelf in self._ranges.items() if shelf.created_at <= made_after]:
            self._remove_range(name)
        self._evict(0)

    def _remove_range(self, name: str) -> None:
        self._cached_bytes -= self._ranges.pop(name).payload_bytes

    async def _read_latest(self) -> EventId:
        async with self._read_semaphore:
            self._latest_task = None  # an answer from before a request came might be too old for it
            return await _with_timeout(self._broker.read_log_head())

    def _start_task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="log read")
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited was told; if nobody did, nobody needs to be


async def _with_timeout(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            return await call
    except TimeoutError:
        raise Unavailable("the log did not answer in time") from None
