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
from gateway.core.errors import Fenced, Rejected
from gateway.core.event import GONE, Fence, Record, text_of
from gateway.sources.base import Feed, Gap
from gateway.sources.redis.stream_offset import (
    START,
    UNKNOWN,
    StreamInfo,
    StreamPlace,
    at_rest,
    parse_id,
    read_on,
)
from gateway.sources.redis.stream_servers import AT_ONCE, Page, StreamServers, key_of, part_of

log = structlog.get_logger("gateway.sources")

STREAMS = 10_000
"""Most streams that one source reads; further ones are named in the log and not read."""

BATCH = 1000
"""Most entries of one read, all streams together."""

FIRST_BATCH = 4
"""Entries of the first read: how large they are is not known yet. The next takes at most twice as many."""

BATCH_BYTES = 4 * 1024 * 1024
"""About how many bytes one read may bring."""

LOOKS = 100
"""Most streams that are looked after at once, the others in turns: XINFO sends two whole entries of each."""

APPEND_BYTES = 1024 * 1024
"""About how many bytes are appended at once."""


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


class StreamReader:
    """One connection's reading: the streams, and how far each was read."""

    def __init__(
        self,
        plan: Plan,
        record: Callable[[str, bytes, Sequence[bytes]], Record],
        feed: Feed,
        servers: StreamServers,
    ) -> None:
        self._plan = plan
        self._record = record
        self._feed = feed
        self._servers = servers
        self._places: dict[bytes, StreamPlace] = {}
        self._earlier: dict[bytes, StreamPlace] = {}
        self._refused: set[bytes] = set()
        self._count = FIRST_BATCH
        self._has_more = False
        self._looks: deque[bytes] = deque()
        """The streams in the order in which they are looked after, each once."""
        self._waiting: dict[bytes, int] = {}

    async def probe(self) -> None:
        """Try what reading needs, so that what is not allowed is told at once. Raises RedisError."""
        await self._servers.infos(self._plan.exact[:1])
        for pattern in self._plan.patterns[:1]:
            await self._servers.scan(pattern)

    async def run(self, fence: Fence) -> None:
        """Read under a lease until it is lost. Raises Fenced, Unavailable, RedisError or TimeoutError."""
        # Places count from the log; these ones only where the log forgot all.
        self._earlier |= self._places
        self._places = {}
        self._looks.clear()
        existing = await self._find(fence)
        self._earlier = {key: place for key, place in self._earlier.items() if key in existing}
        await self._forget_absent(existing, fence)
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

    async def _find(self, fence: Fence) -> set[bytes]:
        """Add the streams that are not known yet, and remember from when on a pattern is watched.

        Returns the keys of all that exist, and those that topics name in full.
        """
        unwatched: list[str] = []
        new: dict[bytes, bool] = dict.fromkeys(self._plan.exact, False)
        for pattern in self._plan.patterns:
            mark = f"*{pattern.redis_pattern}"
            is_watched = await self._feed.position(mark) is not None
            if not is_watched:
                unwatched.append(mark)
            for key in await self._servers.scan(pattern):
                # A stream that appears under a watched pattern is new as a whole.
                new[key] = new.get(key, False) or is_watched
        self._refused &= new.keys()
        await self._begin(new, fence)
        for mark in unwatched:
            await self._feed.publish([], "watched", fence, part=mark)
        return set(new)

    async def _begin(self, found: dict[bytes, bool], fence: Fence) -> None:
        new = [key for key in found if key not in self._places]
        room = STREAMS - len(self._places)
        if len(new) > room:
            log.warning("source_has_too_many_streams", limit=STREAMS, not_read=len(new) - room)
            new = new[:room]
        for first in range(0, len(new), AT_ONCE):
            some = new[first : first + AT_ONCE]
            infos = await self._servers.infos(some)
            await _all(
                self._begin_one(key, found[key], info, fence) for key, info in zip(some, infos, strict=True)
            )

    async def _begin_one(
        self, key: bytes, is_new: bool, info: StreamInfo | ResponseError | None, fence: Fence
    ) -> None:
        if isinstance(info, ResponseError):
            if key not in self._refused:
                log.warning("stream_refused", key=text_of(key), error=str(info))
            self._refused.add(key)
            return
        is_new = is_new or key in self._refused  # it became a stream before our eyes
        self._refused.discard(key)
        part = part_of(key)
        stored = await self._feed.position(part)
        place = StreamPlace.parse(stored) if stored is not None else None
        if place is None:
            place = self._earlier.get(key) or (START if is_new else _beginning(self._plan.start, info))
            await self._feed.publish([], str(place), fence, part=part)
        self._places[key] = place
        self._looks.append(key)

    async def _forget_absent(self, existing: set[bytes], fence: Fence) -> None:
        """Report the streams that disappeared while nobody read the source, and remove their positions.

        A key that is not found at this moment may be written again right after; it is then a new stream.
        """
        for part in await self._feed.parts():
            key = key_of(part)
            is_ours = any(pattern.match(text_of(key)) is not None for pattern in self._plan.patterns)
            if key in existing or not is_ours:
                continue
            stored = await self._feed.position(part)
            place = StreamPlace.parse(stored) if stored is not None else None
            if place is not None:
                await self._end(key, place, fence)

    async def _end(self, key: bytes, before: StreamPlace, fence: Fence) -> None:
        """Remove the position of a stream whose key is gone; what it held unread is a gap."""
        gap = self._gap(text_of(key), before, at_rest(before, None)[1])
        await self._feed.publish([], GONE, fence, part=part_of(key), gap=gap)

    async def _look_after(self, fence: Fence) -> None:
        """See what became of the streams that gave nothing, and how much waits; some of them, in turns."""
        keys = self._next_looks()
        for key, info in zip(keys, await self._servers.infos(keys), strict=True):
            found = info if isinstance(info, StreamInfo) else None
            before = self._places[key]
            if found is not None and before.count != UNKNOWN:
                self._waiting[key] = max(0, found.added - before.count)
            if found is None and key not in self._plan.exact:
                await self._end(key, before, fence)
                del self._places[key]  # a scan finds it when it is there again
                self._earlier.pop(key, None)
                continue
            self._looks.append(key)  # once for each stream: one that is gone is added when it is found again
            place, missing = at_rest(before, found)
            if place != before:
                gap = self._gap(text_of(key), before, missing)
                await self._feed.publish([], str(place), fence, part=part_of(key), gap=gap)
                self._places[key] = place
        self._waiting = {key: count for key, count in self._waiting.items() if key in self._places}
        self._feed.lags(sum(self._waiting.values()))

    def _next_looks(self) -> list[bytes]:
        return [self._looks.popleft() for _ in range(min(LOOKS, len(self._looks)))]

    # Reading.

    async def _step(self, fence: Fence) -> None:
        if not self._feed.is_leading:
            raise Fenced("the lease is another node's")
        ready = await self._servers.ready(self._places, wait=not self._has_more)
        some = ready[: self._count]
        pages = await self._servers.read(some, self._places, max(1, self._count // max(1, len(some))))
        self._has_more = len(ready) > len(some) or any(
            page.info.newest > parse_id(page.entries[-1][0]) for page in pages
        )
        for key in some:
            self._places[key] = self._places.pop(key)  # the others are asked first next time
        if not pages:
            return
        entries = sum(len(page.entries) for page in pages)
        size = sum(len(part) for page in pages for _, flat in page.entries for part in flat)
        self._count = max(1, min(BATCH, 2 * self._count, entries * BATCH_BYTES // max(1, size)))
        await _all(self._take(page, fence) for page in pages)

    async def _take(self, page: Page, fence: Fence) -> None:
        before = self._places[page.key]
        topic, part = text_of(page.key), part_of(page.key)
        place, missing = read_on(before, [parse_id(id) for id, _ in page.entries], page.info)
        gap = self._gap(topic, before, missing)
        records: list[Record] = []
        size = 0
        for number, (id, flat) in enumerate(page.entries, 1):
            try:
                record = self._record(topic, id, flat)
            except Rejected as error:
                self._feed.reject(error.code, error.message, topic=topic)
            else:
                records.append(record)
                size += len(record.payload)
            if size >= APPEND_BYTES and number < len(page.entries):
                left = len(page.entries) - number
                so_far = StreamPlace(parse_id(id), UNKNOWN if place.count == UNKNOWN else place.count - left)
                await self._feed.publish(records, str(so_far), fence, part=part, gap=gap)
                self._places[page.key] = so_far
                gap, records, size = None, [], 0
        await self._feed.publish(records, str(place), fence, part=part, gap=gap)
        self._places[page.key] = place

    def _gap(self, topic: str, before: StreamPlace, missing: int) -> Gap | None:
        if not missing:
            return None
        since = before.id[0] if before != START else None
        return Gap(since, topic, None if missing == UNKNOWN else missing)


def _beginning(start: str, info: StreamInfo | None) -> StreamPlace:
    if info is None:
        return START
    if start == "oldest":
        # What was trimmed before anybody wanted it is not missing.
        return StreamPlace(START.id, info.added - info.length)
    if start == "new":
        return StreamPlace(info.last, info.added)
    id = parse_id(start)
    return StreamPlace(id, 0 if info.added == info.length and id < info.first else UNKNOWN)


async def _all(work: Iterable[Any]) -> None:
    """Await all of it, then raise the first error: nothing of one batch may go on behind the next."""
    jobs = list(work)
    if len(jobs) == 1:
        await jobs[0]
        return
    for result in await asyncio.gather(*jobs, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
