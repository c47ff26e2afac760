"""Reads the Redis streams of one source: discovers them, reads their entries, and stores how far it read.

How it works. The offset of each stream is in the log, stored in one append with the events that its entries
became, under the lease's fencing token. Entries that were trimmed unread become a gap with their number
(`stream_offset`), in the same append as the entries that follow.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import ResponseError

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.errors import RecordRejected, StaleFencingToken
from gateway.core.event import DELETED_OFFSET, FencingToken, Record, decode_lossless
from gateway.sources.base import SourceGap
from gateway.sources.context import SourceContext
from gateway.sources.partitions import discover_partitions, gather_all, mark_watched, read_stored_offset
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
"""Most streams that one source reads; a warning in the log counts the others."""

MAX_READ_ENTRIES = 1000
"""Most entries of one read, of all streams together."""

FIRST_READ_ENTRIES = 4
"""Entries of the first read, while their size is unknown; each later read takes at most twice as many."""

TARGET_READ_BYTES = 4 * 1024 * 1024
"""Bytes that one read should bring."""

MAX_INSPECTED_KEYS = 100
"""Most streams that are inspected at once, in turns: XINFO sends two whole entries of each."""

TARGET_APPEND_BYTES = 1024 * 1024
"""Bytes of payloads that should be appended at once."""


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Which streams to read, and from where."""

    exact_keys: Sequence[bytes]
    """Keys that topics name in full."""
    patterns: Sequence[Template]
    """Topics with wildcards, which may match many keys."""
    start: str
    """Where to start in a stream without a stored offset: ``new``, ``oldest`` or an entry id."""
    scan_seconds: float
    """How often (seconds) new streams are looked for, and idle ones inspected."""


class StreamReader:
    """Reads over one connection, and knows the offset of each stream."""

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
        """All streams, each once, in the order in which they are inspected."""
        self._lag_by_key: dict[bytes, int] = {}

    async def check_permissions(self) -> None:
        """Try the commands that reading needs, to find missing permissions at once. Raises RedisError."""
        await self._servers.read_infos(self._plan.exact_keys[:1])
        for pattern in self._plan.patterns[:1]:
            await self._servers.scan(pattern)

    async def run(self, fence: FencingToken) -> None:
        """Read until the lease is lost. Raises StaleFencingToken, Unavailable, RedisError or TimeoutError."""
        # The log's offsets count; our own are for a log that lost its data.
        self._previous_offsets |= self._offsets
        self._offsets = {}
        self._inspection_queue.clear()
        existing = await self._discover_keys(fence)
        self._previous_offsets = {
            key: offset for key, offset in self._previous_offsets.items() if key in existing
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
        inspected = loop.time()
        while True:
            await self._read_once(fence)
            if loop.time() - inspected >= self._plan.scan_seconds:
                await self._inspect_idle_keys(fence)
                inspected = loop.time()

    # Discovering streams, and noticing those that are gone.

    async def _run_discovery(self, fence: FencingToken) -> None:
        while True:
            await asyncio.sleep(jittered(self._plan.scan_seconds, 0.2))
            await self._discover_keys(fence)

    async def _discover_keys(self, fence: FencingToken) -> set[bytes]:
        """Add the streams that are not known yet; return the keys of all that exist or are named in full."""
        matching, unwatched = await discover_partitions(
            self._context, self._plan.patterns, self._servers.scan
        )
        found = dict.fromkeys(self._plan.exact_keys, False) | matching
        self._non_stream_keys &= found.keys()
        await self._add_keys(found, fence)
        await mark_watched(self._context, unwatched, fence)
        return set(found)

    async def _add_keys(self, found: dict[bytes, bool], fence: FencingToken) -> None:
        new = [key for key in found if key not in self._offsets]
        room = MAX_STREAM_KEYS - len(self._offsets)
        if len(new) > room:
            log.warning("source_stream_keys_exceeded", limit=MAX_STREAM_KEYS, not_read=len(new) - room)
            new = new[:room]
        for first in range(0, len(new), MAX_PIPELINE_COMMANDS):
            some = new[first : first + MAX_PIPELINE_COMMANDS]
            infos = await self._servers.read_infos(some)
            await gather_all(
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
        is_new = is_new or key in self._non_stream_keys  # it became a stream while we watched
        self._non_stream_keys.discard(key)
        offset = await self._read_offset(key)
        if offset is None:
            offset = self._previous_offsets.get(key) or (
                START_OFFSET if is_new else _start_offset(self._plan.start, info)
            )
            await self._store_offset(key, offset, fence)
        self._offsets[key] = offset
        self._inspection_queue.append(key)

    async def _read_offset(self, key: bytes) -> RedisStreamOffset | None:
        return await read_stored_offset(self._context, partition_of_key(key), RedisStreamOffset.parse)

    async def _store_offset(
        self, key: bytes, offset: RedisStreamOffset | str, fence: FencingToken, gap: SourceGap | None = None
    ) -> None:
        await self._context.publish([], str(offset), fence, partition=partition_of_key(key), gap=gap)

    async def _remove_absent_keys(self, existing: set[bytes], fence: FencingToken) -> None:
        """Report the streams that disappeared while nobody read the source, and remove their offsets.

        A key that is not found at this moment may be written again right after; it is then a new stream.
        """
        for partition in await self._context.list_partitions():
            key = key_of_partition(partition)
            is_ours = any(pattern.match(decode_lossless(key)) is not None for pattern in self._plan.patterns)
            if is_ours and key not in existing and (offset := await self._read_offset(key)) is not None:
                await self._remove_offset(key, offset, fence)

    async def _remove_offset(self, key: bytes, before: RedisStreamOffset, fence: FencingToken) -> None:
        """Remove the offset of a stream whose key is gone, and report its unread entries as a gap."""
        gap = _gap(key, before, check_idle_stream(before, None)[1])
        await self._store_offset(key, DELETED_OFFSET, fence, gap)

    async def _inspect_idle_keys(self, fence: FencingToken) -> None:
        """Look for streams that were deleted or restarted, some at a time, and report the source's lag."""
        keys = self._next_keys_to_inspect()
        for key, answer in zip(keys, await self._servers.read_infos(keys), strict=True):
            info = answer if isinstance(answer, StreamInfo) else None
            before = self._offsets[key]
            if info is not None and before.count != UNKNOWN_COUNT:
                self._lag_by_key[key] = max(0, info.entries_added - before.count)
            if info is None and key not in self._plan.exact_keys:
                await self._remove_offset(key, before, fence)
                del self._offsets[key]  # discovery finds it when it exists again
                self._previous_offsets.pop(key, None)
                continue
            self._inspection_queue.append(key)
            offset, missing = check_idle_stream(before, info)
            if offset != before:
                await self._store_offset(key, offset, fence, _gap(key, before, missing))
                self._offsets[key] = offset
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
            raise StaleFencingToken("another node holds the lease")
        ready = await self._servers.find_readable_keys(self._offsets, wait=not self._has_more)
        keys = ready[: self._read_entries_target]
        batches = await self._servers.read_entries(
            keys, self._offsets, max(1, self._read_entries_target // max(1, len(keys)))
        )
        self._has_more = len(ready) > len(keys) or any(
            batch.info.newest_id > parse_entry_id(batch.entries[-1][0]) for batch in batches
        )
        for key in keys:
            self._offsets[key] = self._offsets.pop(
                key
            )  # moves it to the end: the others come first next time
        if not batches:
            return
        entries = sum(len(batch.entries) for batch in batches)
        size = sum(len(part) for batch in batches for _, flat in batch.entries for part in flat)
        self._read_entries_target = max(
            1,
            min(MAX_READ_ENTRIES, 2 * self._read_entries_target, entries * TARGET_READ_BYTES // max(1, size)),
        )
        await gather_all(self._append_entries(batch, fence) for batch in batches)

    async def _append_entries(self, batch: EntryBatch, fence: FencingToken) -> None:
        key, before = batch.key, self._offsets[batch.key]
        topic, partition = decode_lossless(key), partition_of_key(key)
        reached, missing = advance(before, [parse_entry_id(id) for id, _ in batch.entries], batch.info)
        gap = _gap(key, before, missing)
        records: list[Record] = []
        size = 0
        for left, (id, flat) in zip(reversed(range(len(batch.entries))), batch.entries, strict=True):
            try:
                record = self._decode_entry(topic, id, flat)
            except RecordRejected as error:
                self._context.count_rejection(error.code, error.message, topic=topic)
            else:
                records.append(record)
                size += len(record.payload)
            if size >= TARGET_APPEND_BYTES or not left:
                count = UNKNOWN_COUNT if reached.count == UNKNOWN_COUNT else reached.count - left
                offset = RedisStreamOffset(parse_entry_id(id), count)
                await self._context.publish(records, str(offset), fence, partition=partition, gap=gap)
                self._offsets[key] = offset
                gap, records, size = None, [], 0


def _gap(key: bytes, before: RedisStreamOffset, missing: int) -> SourceGap | None:
    if not missing:
        return None
    since = before.id[0] if before != START_OFFSET else None
    return SourceGap(since, decode_lossless(key), None if missing == UNKNOWN_COUNT else missing)


def _start_offset(start: str, info: StreamInfo | None) -> RedisStreamOffset:
    if info is None:
        return START_OFFSET
    if start == "oldest":
        # Entries that were trimmed before the first read are not missing.
        return RedisStreamOffset(START_OFFSET.id, info.entries_added - info.length)
    if start == "new":
        return RedisStreamOffset(info.last_generated_id, info.entries_added)
    id = parse_entry_id(start)
    return RedisStreamOffset(
        id, 0 if info.entries_added == info.length and id < info.first_id else UNKNOWN_COUNT
    )
