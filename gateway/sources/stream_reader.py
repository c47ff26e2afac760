"""Reads Redis streams for one source: which there are, how far each was read, and what each one gives.

How it works. Behind which entry each stream is read on is in the log, stored with the events that the entries
became. What was trimmed away unread is a gap with its number, see `stream_place`. One XREAD waits for all
streams of a server. In a cluster each slot needs an XREAD of its own, so they are asked in turns there.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from gateway.backoff import jittered
from gateway.config.template import Template
from gateway.errors import Fenced, SourceError
from gateway.event import Fence, Record
from gateway.redis_target import Topology
from gateway.sources.base import Feed
from gateway.sources.stream_place import START, UNKNOWN, StreamInfo, StreamPlace, at_rest, parse_id, read_on

log = structlog.get_logger("gateway.sources")

STREAMS = 10_000
"""Most streams that one source reads; further ones are named in the log and not read."""

BATCH = 1000
"""Most entries of one XREAD, all streams together."""

BATCH_BYTES = 4 * 1024 * 1024
"""About how many bytes of payload one XREAD may bring."""

BLOCK_SECONDS = 1.0
"""How long an XREAD waits; new streams are read from then on."""

ASK_SECONDS = 0.05
"""How often the streams of a cluster are asked when all were silent."""

_AT_ONCE = 500  # commands in a pipeline, and appends under way
_SCAN_COUNT = 1000

Entries = Sequence[tuple[bytes, Sequence[bytes]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be read."""

    exact: Sequence[bytes]
    """Keys that topics name in full."""
    patterns: Sequence[Template]
    """Topics that may name many keys."""
    start: str
    """Where a stream begins that was never read."""
    scan_seconds: float
    """How often keys are looked for."""
    timeout: float
    """Seconds that a server may take for an answer."""


class StreamReader:
    """One connection's reading: the streams, and how far each was read."""

    def __init__(
        self,
        plan: Plan,
        record: Callable[[str, bytes, Sequence[bytes]], Record | None],
        feed: Feed,
        servers: Sequence[Redis],
        topology: Topology,
    ) -> None:
        self._plan = plan
        self._record = record
        self._feed = feed
        self._servers = servers
        self._owner = topology.owner
        self._is_cluster = len(servers) > 1
        self._places: dict[bytes, StreamPlace] = {}
        self._refused: set[bytes] = set()
        self._count = BATCH

    async def run(self, fence: Fence) -> None:
        """Read under a lease until it is lost. Raises Fenced, Unavailable, RedisError or TimeoutError."""
        self._places.clear()
        await self._find(fence)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_finding(fence))
                group.create_task(self._keep_reading(fence))
        except ExceptionGroup as group_of:
            raise group_of.exceptions[0] from None

    async def _keep_reading(self, fence: Fence) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await self._step(fence)
            if loop.time() - looked >= self._plan.scan_seconds:
                await self._look_after(fence)
                looked = loop.time()

    # Which streams there are.

    async def _keep_finding(self, fence: Fence) -> None:
        while True:
            await asyncio.sleep(jittered(self._plan.scan_seconds, 0.2))
            await self._find(fence)

    async def _find(self, fence: Fence) -> None:
        """Add the streams that are not known yet, and remember from when on a pattern is watched."""
        await self._begin(self._plan.exact, self._plan.start, fence)
        for pattern in self._plan.patterns:
            mark = f"*{pattern.redis_pattern}"
            is_watched = await self._feed.position(mark) is not None
            # A stream that appears under a watched pattern is new as a whole.
            await self._begin(await self._scan(pattern), "oldest" if is_watched else self._plan.start, fence)
            if not is_watched:
                await self._feed.publish([], "watched", fence, part=mark)

    async def _scan(self, pattern: Template) -> list[bytes]:
        found: set[bytes] = set()
        for server in self._servers:
            cursor: Any = 0
            keys: Any
            while True:
                async with asyncio.timeout(self._plan.timeout):
                    cursor, keys = await server.scan(
                        cursor, match=pattern.redis_pattern, count=_SCAN_COUNT, _type="stream"
                    )
                found.update(key for key in keys if pattern.match(_text(key)) is not None)
                if not int(cursor):
                    break
        return sorted(found)

    async def _begin(self, keys: Sequence[bytes], start: str, fence: Fence) -> None:
        new = [key for key in keys if key not in self._places and key not in self._refused]
        room = STREAMS - len(self._places)
        if len(new) > room:
            log.warning("source_has_too_many_streams", limit=STREAMS, not_read=len(new) - room)
            new = new[:room]
        for first in range(0, len(new), _AT_ONCE):
            some = new[first : first + _AT_ONCE]
            infos = await self._infos(some)
            await _all(
                self._begin_one(key, start, info, fence) for key, info in zip(some, infos, strict=True)
            )

    async def _begin_one(self, key: bytes, start: str, info: Any, fence: Fence) -> None:
        if isinstance(info, ResponseError) and "no such key" not in str(info):
            self._refused.add(key)
            log.warning("stream_refused", key=key.decode(errors="replace"), error=str(info))
            return
        info = None if isinstance(info, ResponseError) else info
        part = _text(key)
        text = await self._feed.position(part)
        place = StreamPlace.parse(text) if text is not None else None
        if place is None:
            place = _beginning(start, info)
            await self._feed.publish([], str(place), fence, part=part)
        self._places[key] = place

    async def _infos(self, keys: Sequence[bytes]) -> list[StreamInfo | ResponseError]:
        """Return what the servers say of streams; an error stands for what is none."""
        found: dict[bytes, Any] = {}
        for server, own in self._by_server(keys):
            pipe = server.pipeline(transaction=False)
            for key in own:
                pipe.execute_command("XINFO STREAM", key)
            async with asyncio.timeout(self._plan.timeout):
                answers = await pipe.execute(raise_on_error=False)
            found.update(zip(own, answers, strict=True))
        return [_info(found[key]) for key in keys]

    def _by_server(self, keys: Sequence[bytes]) -> Iterable[tuple[Redis, list[bytes]]]:
        if not self._is_cluster:
            return [(self._servers[0], list(keys))] if keys else []
        groups: dict[int, list[bytes]] = {}
        for key in keys:
            groups.setdefault(self._owner(key), []).append(key)
        return [(self._servers[owner], own) for owner, own in groups.items()]

    async def _look_after(self, fence: Fence) -> None:
        """See what became of the streams that gave nothing, and how much waits."""
        keys = list(self._places)
        waiting = 0
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            for key, info in zip(some, await self._infos(some), strict=True):
                found = None if isinstance(info, ResponseError) else info
                before = self._places[key]
                if found is not None and before.count != UNKNOWN:
                    waiting += max(0, found.added - before.count)
                place, missing = at_rest(before, found)
                if missing:
                    await self._lost(key, before, place, missing, fence)
                self._places[key] = place
        self._feed.lags(waiting)

    # Reading.

    async def _step(self, fence: Fence) -> None:
        if not self._feed.is_leading:
            raise Fenced("the lease is another node's")
        answer = await (self._ask() if self._is_cluster else self._wait())
        if not answer:
            return
        size = sum(len(text) for _, entries in answer for _, flat in entries for text in flat)
        room = BATCH if size == 0 else self._count * BATCH_BYTES // size
        self._count = max(1, min(BATCH, room))
        infos = await self._infos([key for key, _ in answer])
        await _all(
            self._take(key, entries, info, fence) for (key, entries), info in zip(answer, infos, strict=True)
        )

    async def _wait(self) -> Sequence[tuple[bytes, Entries]]:
        """Read one server's streams; wait for one of them to have something."""
        if not self._places:
            await asyncio.sleep(BLOCK_SECONDS)
            return []
        arguments = self._read_of(list(self._places))
        block = round(BLOCK_SECONDS * 1000)
        async with asyncio.timeout(BLOCK_SECONDS + self._plan.timeout):
            answer = await self._servers[0].execute_command(  # type: ignore[no-untyped-call]
                "XREAD", "COUNT", self._share(len(self._places)), "BLOCK", block, *arguments
            )
        return answer or []

    async def _ask(self) -> Sequence[tuple[bytes, Entries]]:
        """Read a cluster's streams, slot by slot, without waiting."""
        found: list[tuple[bytes, Entries]] = []
        count = self._share(len(self._places))
        for server, own in self._by_server(list(self._places)):
            slots: dict[int, list[bytes]] = {}
            for key in own:
                slots.setdefault(key_slot(key), []).append(key)
            pipe = server.pipeline(transaction=False)
            for keys in slots.values():
                pipe.execute_command("XREAD", "COUNT", count, *self._read_of(keys))
            async with asyncio.timeout(self._plan.timeout):
                for answer in await pipe.execute():
                    found += answer or []
        if not found:
            await asyncio.sleep(ASK_SECONDS)
        return found

    def _read_of(self, keys: Sequence[bytes]) -> list[bytes | str]:
        return ["STREAMS", *keys, *(self._places[key].text for key in keys)]

    def _share(self, streams: int) -> int:
        return max(1, self._count // max(1, streams))

    async def _take(self, key: bytes, entries: Entries, info: Any, fence: Fence) -> None:
        before = self._places[key]
        ids = [parse_id(id) for id, _ in entries]
        place, missing = StreamPlace(ids[-1], UNKNOWN), UNKNOWN  # the key went in between
        if isinstance(info, StreamInfo):
            place, missing = read_on(before, ids, info)
        if missing:
            await self._lost(key, before, before, missing, fence)
        records = []
        topic = _text(key)
        for id, flat in entries:
            record = self._record(topic, id, flat)
            if record is None:
                self._feed.reject("no_payload", "the entry has no such field", topic=topic)
            else:
                records.append(record)
        await self._feed.publish(records, str(place), fence, part=topic)
        self._places[key] = place

    async def _lost(
        self, key: bytes, before: StreamPlace, place: StreamPlace, missing: int, fence: Fence
    ) -> None:
        topic = _text(key)
        count = None if missing == UNKNOWN else missing
        await self._feed.tell_gap(before.id[0], str(place), fence, part=topic, topic=topic, missing=count)


def _beginning(start: str, info: StreamInfo | None) -> StreamPlace:
    if start == "oldest" or info is None:
        # What was trimmed before anybody wanted it is not missing.
        return START if info is None else StreamPlace(START.id, info.added - info.length)
    if start == "new":
        return StreamPlace(info.last, info.added)
    return StreamPlace(parse_id(start), UNKNOWN)


def _info(answer: Any) -> StreamInfo | ResponseError:
    if isinstance(answer, ResponseError):
        return answer
    if isinstance(answer, Exception):
        raise answer
    info = StreamInfo.of(answer)
    if info is None:
        raise SourceError("Redis 7 or Valkey is needed: an older one does not tell what was trimmed")
    return info


def _text(key: Any) -> str:
    text: str = key.decode(errors="backslashreplace")
    return text


async def _all(work: Iterable[Any]) -> None:
    """Await all of it, then raise the first error: nothing of one batch may go on behind the next."""
    jobs = list(work)
    if len(jobs) == 1:
        await jobs[0]
        return
    for result in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
