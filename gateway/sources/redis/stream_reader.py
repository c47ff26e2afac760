"""Reads Redis streams for one source: which there are, how far each was read, and what each one gives.

How it works. Behind which entry each stream is read on is in the log, stored with the events that the entries
became, under the lease's fence. What was trimmed away unread is a gap with its number (`stream_place`), in
the same append as what follows it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.exceptions import ResponseError

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import RecordRejected, StaleFencingToken
from gateway.core.event import DELETED_OFFSET, FencingToken, Record, decode_lossless
from gateway.sources.base import SourceContext, SourceGap
from gateway.sources.redis.stream_offset import (
    START_OFFSET,
    UNKNOWN_COUNT,
    RedisStreamOffset,
    StreamInfo,
    advance,
    check_idle_stream,
    parse_entry_id,
)
from gateway.sources.redis.stream_servers import (
    MAX_PIPELINE_COMMANDS,
    EntryBatch,
    StreamServers,
    key_of_partition,
    partition_of_key,
)

log = structlog.get_logger("gateway.sources")

MAX_STREAM_KEYS = 10_000
"""Most streams that one source reads; further ones are named in the log and not read."""

MAX_READ_ENTRIES = 1000
"""Most entries of one read, all streams together."""

FIRST_READ_ENTRIES = 4
"""Entries of the first read: how large they are is not known yet. The next takes at most twice as many."""

TARGET_READ_BYTES = 4 * 1024 * 1024
"""About how many bytes one read may bring."""

MAX_INSPECTED_KEYS = 100
"""Most streams that are looked after at once, the others in turns: XINFO sends two whole entries of each."""

TARGET_APPEND_BYTES = 1024 * 1024
"""About how many bytes are appended at once."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What is to be read."""

    exact_keys: Sequence[bytes]
    """Keys that topics name in full."""
    patterns: Sequence[Template]
    """Topics that may name many keys."""
    start: str
    """Where a stream begins that was never read."""
    scan_seconds: float
    """How often keys are looked for."""


class StreamReader:
    """One connection's reading: the streams, and how far each was read."""

    def __init__(
        self,
        plan: ReadPlan,
        decode_entry: Callable[[str, bytes, Sequence[bytes]], Record],
        context: SourceContext,
        servers: StreamServers,
    ) -> None:
        self._plan = plan
        self._decode_entry = decode_entry
        self._context = context
        self._servers = servers
        self._offsets: dict[bytes, RedisStreamOffset] = {}
        self._previous_offsets: dict[bytes, RedisStreamOffset] = {}
        self._non_stream_keys: set[bytes] = set()
        self._read_entries_target = FIRST_READ_ENTRIES
        self._has_more = False
        self._inspection_queue: deque[bytes] = deque()
        """The streams in the order in which they are looked after, each once."""
        self._lag_by_key: dict[bytes, int] = {}

    async def check_permissions(self) -> None:
        """Try what reading needs, so that what is not allowed is told at once. Raises RedisError."""
        await self._servers.read_infos(self._plan.exact_keys[:1])
        for pattern in self._plan.patterns[:1]:
            await self._servers.scan(pattern)

    async def run(self, fence: FencingToken) -> None:
        """Read under a lease until it is lost. Raises Fenced, Unavailable, RedisError or TimeoutError."""
        # Places count from the log; these ones only where the log forgot all.
        self._previous_offsets |= self._offsets
        self._offsets = {}
        self._inspection_queue.clear()
        existing = await self._discover_keys(fence)
        self._previous_offsets = {
            key: place for key, place in self._previous_offsets.items() if key in existing
        }
        await self._remove_absent_keys(existing, fence)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._run_discovery(fence))
                group.create_task(self._run_reading(fence))
        except ExceptionGroup as group_of:
            raise group_of.exceptions[0] from None

    async def _run_reading(self, fence: FencingToken) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await self._read_once(fence)
            if loop.time() - looked >= self._plan.scan_seconds:
                await self._inspect_idle_keys(fence)
                looked = loop.time()

    # Which streams there are.

    async def _run_discovery(self, fence: FencingToken) -> None:
        while True:
            await asyncio.sleep(jittered(self._plan.scan_seconds, 0.2))
            await self._discover_keys(fence)

    async def _discover_keys(self, fence: FencingToken) -> set[bytes]:
        """Add the streams that are not known yet, and remember from when on a pattern is watched.

        Returns the keys of all that exist, and those that topics name in full.
        """
        unwatched: list[str] = []
        new: dict[bytes, bool] = dict.fromkeys(self._plan.exact_keys, False)
        for pattern in self._plan.patterns:
            mark = f"*{pattern.redis_pattern}"
            is_watched = await self._context.read_offset(mark) is not None
            if not is_watched:
                unwatched.append(mark)
            for key in await self._servers.scan(pattern):
                # A stream that appears under a watched pattern is new as a whole.
                new[key] = new.get(key, False) or is_watched
        self._non_stream_keys &= new.keys()
        await self._add_keys(new, fence)
        for mark in unwatched:
            await self._context.publish([], "watched", fence, partition=mark)
        return set(new)

    async def _add_keys(self, found: dict[bytes, bool], fence: FencingToken) -> None:
        new = [key for key in found if key not in self._offsets]
        room = MAX_STREAM_KEYS - len(self._offsets)
        if len(new) > room:
            log.warning("source_stream_keys_exceeded", limit=MAX_STREAM_KEYS, not_read=len(new) - room)
            new = new[:room]
        for first in range(0, len(new), MAX_PIPELINE_COMMANDS):
            some = new[first : first + MAX_PIPELINE_COMMANDS]
            infos = await self._servers.read_infos(some)
            await _gather_all(
                self._add_key(key, found[key], info, fence) for key, info in zip(some, infos, strict=True)
            )

    async def _add_key(
        self, key: bytes, is_new: bool, info: StreamInfo | ResponseError | None, fence: FencingToken
    ) -> None:
        if isinstance(info, ResponseError):
            if key not in self._non_stream_keys:
                log.warning("stream_refused", key=decode_lossless(key), error=str(info))
            self._non_stream_keys.add(key)
            return
        is_new = is_new or key in self._non_stream_keys  # it became a stream before our eyes
        self._non_stream_keys.discard(key)
        part = partition_of_key(key)
        stored = await self._context.read_offset(part)
        place = RedisStreamOffset.parse(stored) if stored is not None else None
        if place is None:
            place = self._previous_offsets.get(key) or (
                START_OFFSET if is_new else _start_offset(self._plan.start, info)
            )
            await self._context.publish([], str(place), fence, partition=part)
        self._offsets[key] = place
        self._inspection_queue.append(key)

    async def _remove_absent_keys(self, existing: set[bytes], fence: FencingToken) -> None:
        """Report the streams that disappeared while nobody read the source, and remove their positions.

        A key that is not found at this moment may be written again right after; it is then a new stream.
        """
        for part in await self._context.list_partitions():
            key = key_of_partition(part)
            is_ours = any(pattern.match(decode_lossless(key)) is not None for pattern in self._plan.patterns)
            if key in existing or not is_ours:
                continue
            stored = await self._context.read_offset(part)
            place = RedisStreamOffset.parse(stored) if stored is not None else None
            if place is not None:
                await self._remove_offset(key, place, fence)

    async def _remove_offset(self, key: bytes, before: RedisStreamOffset, fence: FencingToken) -> None:
        """Remove the position of a stream whose key is gone; what it held unread is a gap."""
        gap = self._gap(decode_lossless(key), before, check_idle_stream(before, None)[1])
        await self._context.publish([], DELETED_OFFSET, fence, partition=partition_of_key(key), gap=gap)

    async def _inspect_idle_keys(self, fence: FencingToken) -> None:
        """See what became of the streams that gave nothing, and how much waits; some of them, in turns."""
        keys = self._next_keys_to_inspect()
        for key, info in zip(keys, await self._servers.read_infos(keys), strict=True):
            found = info if isinstance(info, StreamInfo) else None
            before = self._offsets[key]
            if found is not None and before.count != UNKNOWN_COUNT:
                self._lag_by_key[key] = max(0, found.entries_added - before.count)
            if found is None and key not in self._plan.exact_keys:
                await self._remove_offset(key, before, fence)
                del self._offsets[key]  # a scan finds it when it is there again
                self._previous_offsets.pop(key, None)
                continue
            self._inspection_queue.append(
                key
            )  # once for each stream: one that is gone is added when it is found again
            place, missing = check_idle_stream(before, found)
            if place != before:
                gap = self._gap(decode_lossless(key), before, missing)
                await self._context.publish([], str(place), fence, partition=partition_of_key(key), gap=gap)
                self._offsets[key] = place
        self._lag_by_key = {key: count for key, count in self._lag_by_key.items() if key in self._offsets}
        self._context.report_lag(sum(self._lag_by_key.values()))

    def _next_keys_to_inspect(self) -> list[bytes]:
        return [
            self._inspection_queue.popleft()
            for _ in range(min(MAX_INSPECTED_KEYS, len(self._inspection_queue)))
        ]

    # Reading.

    async def _read_once(self, fence: FencingToken) -> None:
        if not self._context.has_lease:
            raise StaleFencingToken("the lease is another node's")
        ready = await self._servers.find_readable_keys(self._offsets, wait=not self._has_more)
        some = ready[: self._read_entries_target]
        pages = await self._servers.read_entries(
            some, self._offsets, max(1, self._read_entries_target // max(1, len(some)))
        )
        self._has_more = len(ready) > len(some) or any(
            page.info.newest_id > parse_entry_id(page.entries[-1][0]) for page in pages
        )
        for key in some:
            self._offsets[key] = self._offsets.pop(key)  # the others are asked first next time
        if not pages:
            return
        entries = sum(len(page.entries) for page in pages)
        size = sum(len(part) for page in pages for _, flat in page.entries for part in flat)
        self._read_entries_target = max(
            1,
            min(MAX_READ_ENTRIES, 2 * self._read_entries_target, entries * TARGET_READ_BYTES // max(1, size)),
        )
        await _gather_all(self._append_entries(page, fence) for page in pages)

    async def _append_entries(self, batch: EntryBatch, fence: FencingToken) -> None:
        before = self._offsets[batch.key]
        topic, part = decode_lossless(batch.key), partition_of_key(batch.key)
        place, missing = advance(before, [parse_entry_id(id) for id, _ in batch.entries], batch.info)
        gap = self._gap(topic, before, missing)
        records: list[Record] = []
        size = 0
        for number, (id, flat) in enumerate(batch.entries, 1):
            try:
                record = self._decode_entry(topic, id, flat)
            except RecordRejected as error:
                self._context.count_rejection(error.code, error.message, topic=topic)
            else:
                records.append(record)
                size += len(record.payload)
            if size >= TARGET_APPEND_BYTES and number < len(batch.entries):
                left = len(batch.entries) - number
                so_far = RedisStreamOffset(
                    parse_entry_id(id), UNKNOWN_COUNT if place.count == UNKNOWN_COUNT else place.count - left
                )
                await self._context.publish(records, str(so_far), fence, partition=part, gap=gap)
                self._offsets[batch.key] = so_far
                gap, records, size = None, [], 0
        await self._context.publish(records, str(place), fence, partition=part, gap=gap)
        self._offsets[batch.key] = place

    def _gap(self, topic: str, before: RedisStreamOffset, missing: int) -> SourceGap | None:
        if not missing:
            return None
        since = before.id[0] if before != START_OFFSET else None
        return SourceGap(since, topic, None if missing == UNKNOWN_COUNT else missing)


def _start_offset(start: str, info: StreamInfo | None) -> RedisStreamOffset:
    if info is None:
        return START_OFFSET
    if start == "oldest":
        # What was trimmed before anybody wanted it is not missing.
        return RedisStreamOffset(START_OFFSET.id, info.entries_added - info.length)
    if start == "new":
        return RedisStreamOffset(info.last_generated_id, info.entries_added)
    id = parse_entry_id(start)
    return RedisStreamOffset(
        id, 0 if info.entries_added == info.length and id < info.first_id else UNKNOWN_COUNT
    )


async def _gather_all(work: Iterable[Any]) -> None:
    """Await all of it, then raise the first error: nothing of one batch may go on behind the next."""
    jobs = list(work)
    if len(jobs) == 1:
        await jobs[0]
        return
    for result in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
