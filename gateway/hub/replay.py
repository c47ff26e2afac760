"""From the id that a client has to the live events: resume, slow clients and floods are one mechanism.

A stream that is in no audience is *behind*: it has a cursor, and `Replay` writes it page after page of
what comes after, from the ring where that reaches back far enough, else from the broker, until the
cursor meets the hub's head. There it joins its audience in the same turn of the loop, so between
the last page and the first live event there is no seam. A client that stops reading pauses this, and
one that reads again resumes it, from the same cursor.

A page that cannot be had any more is a gap. Up to where the log was when the stream opened, it is told:
the client was away. After that the client read too slowly, and the channel's ``slow_client`` says what
happens.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from gateway.backoff import jittered
from gateway.broker.base import Broker, Slice
from gateway.errors import Unavailable
from gateway.event import EventId
from gateway.hub.audience import MAX_FRAME, Member
from gateway.hub.entry import Entry
from gateway.hub.hub import Hub
from gateway.hub.subscription import Subscription
from gateway.metrics import Metrics
from gateway.sse import gap_block

log = structlog.get_logger("gateway.hub")

PAGE = 128
"""Events per page."""

READS = 64
"""Reads of the broker that may be under way at once."""

READ_TIMEOUT = 5.0
"""Seconds that one read of the broker may take."""

RETRY = 1.0
"""Seconds until a stream whose read failed tries again, jittered."""

T = TypeVar("T")

_PAGE_COST = 8  # a page is as much work for the pump as this many deliveries


class Reader(Member, Protocol):
    """What replay needs of a stream."""

    subscription: Subscription
    began: EventId
    """The head when it opened: of channels without history it gets what came later."""
    is_behind: bool
    """Whether it has a turn coming, or a read under way."""
    told: dict[str, EventId | None]
    """Gaps told when it opened, by channel, with the oldest event that was held then."""

    @property
    def can_take(self) -> bool:
        """Whether it is neither closing nor paused."""

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks now."""

    def end(self, reason: str) -> None:
        """Close at this event boundary."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: at ``after``; else ``last`` events back; else now.

    ``resumes`` is True for a client that comes back (Last-Event-ID), whose id may be forged: an id
    that is no id is ``after`` None.
    """

    after: EventId | None = None
    last: int | None = None
    resumes: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """What the first bytes of a stream say."""

    head: EventId
    """The log when this was decided."""
    cursor: EventId
    resume: str
    id: EventId | None
    """The id that ``stream.open`` carries: up to there the client has everything, or was told."""
    gaps: bytes = b""
    told: Mapping[str, EventId | None] = field(default_factory=dict)


class Replay:
    """Brings streams from their cursor to the head. Owns the tasks that read for them."""

    def __init__(self, hub: Hub, broker: Broker, metrics: Metrics) -> None:
        self._hub = hub
        self._broker = broker
        self._metrics = metrics
        self._reads = asyncio.Semaphore(READS)
        self._tasks: set[asyncio.Task[None]] = set()
        hub.on_behind = self.catch_up

    async def open(self, subscription: Subscription, start: Start) -> Opening:
        """Decide where a stream begins and what it must be told. Raises Unavailable."""
        head = self._hub.head
        if start.last is not None:
            cursor = min(await _bounded(self._broker.newest(subscription.channels, start.last)), head)
            # Nothing was promised about what lies further back, so what is gone there is not told.
            found = await _bounded(self._broker.read(subscription.topics, cursor, head, 1))
            return Opening(head, cursor, "none", cursor, told=_of_channels(subscription, found.gaps))
        after = start.after
        if after is None or (after > head and after > await _bounded(self._broker.latest())):
            if not start.resumes:
                return Opening(head, head, "none", head)
            # Nobody knows what the client has. It keeps its id until the last gap is through.
            gaps = dict.fromkeys(subscription.channels)
            return Opening(head, head, "gap", None, self._gaps(gaps, "unknown_id", None, head), gaps)
        if after > head or (subscription.has_history and self._hub.covers(subscription, after)):
            return Opening(head, after, "complete", after)
        found = await _bounded(self._broker.read(subscription.topics, after, head, 1))
        cursor = after if found.events else head
        gaps = _of_channels(subscription, found.gaps)
        if not gaps:
            return Opening(head, cursor, "complete", cursor)
        blocks = self._gaps(gaps, "expired", after, None if found.events else head)
        return Opening(head, cursor, "gap", after, blocks, gaps)

    def catch_up(self, stream: Reader) -> None:
        """Bring a stream to the head. Call it for a new one and whenever one can take more again."""
        if stream.audience is not None or stream.is_behind or not stream.can_take:
            return
        if stream.cursor == self._hub.head:
            self._join(stream)
            return
        stream.is_behind = True
        self._hub.schedule(self._turn, stream)

    async def close(self) -> None:
        """End all reads; harmless when repeated."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self, stream: Reader) -> None:
        self._hub.join(stream, stream.subscription)

    def _turn(self, stream: Reader, budget: int) -> tuple[int, bool]:
        try:
            return self._step(stream)
        except Exception:
            log.exception("replay_failed")
            stream.is_behind = False
            stream.end("internal_error")
            return 1, False

    def _step(self, stream: Reader) -> tuple[int, bool]:
        if not stream.can_take:
            stream.is_behind = False
            return 0, False
        head = self._hub.head
        if stream.cursor == head:
            stream.is_behind = False
            self._join(stream)
            return 1, False
        if stream.cursor < head and self._hub.covers(stream.subscription, stream.cursor):
            entries = self._hub.recent(stream.subscription, stream.cursor, PAGE)
            self._write(stream, entries, head if len(entries) < PAGE else entries[-1].id)
            return _PAGE_COST, True
        task = asyncio.create_task(self._fetch(stream), name="replay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return 1, False

    async def _fetch(self, stream: Reader) -> None:
        """Write one page from the broker, and queue the stream for the next."""
        try:
            # Ahead of this node's follower: the client was served by another one. It will come.
            if stream.cursor > self._hub.head:
                await asyncio.sleep(jittered(0.05, 0.5))
            else:
                async with self._reads:
                    head = self._hub.head
                    if stream.cursor < stream.began:
                        # Only so far: what channels without history sent since then is in the rings alone.
                        head = min(head, stream.began)
                    read = self._broker.read(stream.subscription.topics, stream.cursor, head, PAGE)
                    found = await _bounded(read)
                if stream.can_take:
                    self._write_found(stream, found, head)
        except Unavailable as error:
            log.warning("replay_waits", error=error.message)
            await asyncio.sleep(jittered(RETRY, 0.5))
        except Exception:
            log.exception("replay_failed")
            stream.end("internal_error")
        finally:
            stream.is_behind = False
        self.catch_up(stream)

    def _write_found(self, stream: Reader, found: Slice, head: EventId) -> None:
        subscription = stream.subscription
        gaps = _of_channels(subscription, found.gaps)
        until = found.events[-1].id if found.more else head
        if stream.cursor < stream.began:
            reason = "expired"
            gaps = {name: oldest for name, oldest in gaps.items() if stream.told.get(name, head) != oldest}
            stream.told.update(gaps)
        else:
            reason = "slow_client"
            policies = {match.name: match.declared.spec.slow_client for match in subscription.matches}
            if any(policies[name] == "disconnect" for name in gaps):
                stream.end("slow_client")
                return
        if gaps:
            stream.send(self._gaps(gaps, reason, stream.cursor, None if found.events else until), 0)
        self._write(stream, self._hub.entries(subscription, found.events), until)

    def _write(self, stream: Reader, entries: list[Entry], until: EventId) -> None:
        """Write entries in blocks of at most `MAX_FRAME` bytes, for as long as the stream takes them."""
        subscription = stream.subscription
        page: list[Entry] = []
        size = 0
        for entry in entries:
            # An event without an id may be one that the client has: its id could not tell.
            if subscription.wants(entry) and (entry.event.kept or entry.id > stream.began):
                page.append(entry)
                size += len(entry.event.payload)
            if size >= MAX_FRAME:
                self._send(stream, page, entry.id)
                page, size = [], 0
                if not stream.can_take:
                    return
        self._send(stream, page, until)

    def _send(self, stream: Reader, page: list[Entry], until: EventId) -> None:
        # The cursor first: writing may pause the stream, and the page counts as written then.
        stream.cursor = until
        if page:
            stream.send(stream.subscription.encode(page), len(page))
            self._metrics.replayed.inc(len(page))

    def _gaps(
        self, gaps: Mapping[str, EventId | None], reason: str, after: EventId | None, id: EventId | None
    ) -> bytes:
        """Return one ``stream.gap`` per channel; ``id`` is on the last, so that a cut skips none."""
        self._metrics.gaps.labels(reason).inc(len(gaps))
        last = len(gaps) - 1
        return b"".join(
            gap_block(name, reason, after=after, oldest=oldest, id=id if position == last else None)
            for position, (name, oldest) in enumerate(gaps.items())
        )


async def _bounded(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await call
    except TimeoutError:
        raise Unavailable("the broker did not answer in time") from None


def _of_channels(subscription: Subscription, gaps: Mapping[str, EventId | None]) -> dict[str, EventId | None]:
    """Return the gaps by the stream's channels: one of a template concerns all of its instances."""
    return {
        name: gaps.get(name, gaps.get(template))
        for name, template in ((match.name, match.declared.name) for match in subscription.matches)
        if name in gaps or template in gaps
    }
