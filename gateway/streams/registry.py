"""All streams of this node: the one place where they are counted, opened, paused and let go."""

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count

import structlog

from gateway.auth.revocation import Withdrawal
from gateway.config.model.config import Timeouts
from gateway.core.backoff import jittered
from gateway.core.errors import Draining, Overload
from gateway.core.event import EventId
from gateway.core.rate_limit import Rate
from gateway.core.sse import control_block, open_block
from gateway.hub.hub import Hub
from gateway.hub.replay import Opening, Replay, Start
from gateway.hub.subscription import Subscription
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Metrics
from gateway.streams.acks.state import Asked, Rule
from gateway.streams.acks.tracker import Acks
from gateway.streams.connection import Connection
from gateway.streams.quotas.quota import FREE, Hold
from gateway.streams.reconnects import Reconnects
from gateway.streams.short_heartbeats import USUAL, HeartbeatOptions, ShortHeartbeats

log = structlog.get_logger("gateway.streams")

AGE_JITTER = 0.2
"""Share by which the maximum age of a stream varies, so that those of one herd do not end together."""

NEVER_MS = 86_400_000
"""``retry:`` for a client that should not come back: a day. It stops those that ignore ``stream.close``."""

ID_BYTES = 12
"""Random bytes in the id of a connection: 96 bits cannot be guessed."""

SLOTS = 32
"""Parts that the streams are dealt into for `heartbeat.Sweep`."""


DRAIN_RATE = 50.0
"""Streams that a drain ends per second where its time leaves the choice.

Nobody notices so few that come back: a core takes about 10,000 a second. A node with a handful of streams is
gone in a moment; one with many spreads them over the time that it has.
"""

_DRAIN_TICK = 0.05
_DRAIN_SPREAD = 0.8  # of the drain time; the rest is for the last bytes to get out


def _random_ids() -> Iterator[str]:
    # In batches: each question to the kernel lets go of the interpreter, and a busy thread may take it.
    while True:
        many = secrets.token_hex(256 * ID_BYTES)
        for first in range(0, len(many), 2 * ID_BYTES):
            yield many[first : first + 2 * ID_BYTES]


_ids = _random_ids()


class Full(Overload):
    """No more streams here now."""

    code = "overloaded"


class TooManyAtOnce(Overload):
    """More streams open per second than this node may take."""

    code = "connect_rate"


class Streams:
    """The live connections, and what they share."""

    def __init__(
        self,
        hub: Hub,
        replay: Replay,
        metrics: Metrics,
        timeouts: Timeouts,
        acks: Acks,
        *,
        limit: int,
        rate: float | None = None,
        background: Background = UNCOUNTED,
    ) -> None:
        """Make the home of at most ``limit`` streams, of which ``rate`` may open per second."""
        self.metrics = metrics
        self.acks = acks
        self.open: dict[Connection, None] = {}
        self.stalled: dict[Connection, None] = {}
        """Streams whose transport has something to get rid of: paused, or closing."""
        self.listeners: Counter[str] = Counter()
        """How many streams are open on each channel, by declared name."""
        self.reconnects = Reconnects(metrics)
        self.short_heartbeats = ShortHeartbeats(timeouts, background)
        self.slots: list[dict[Connection, None]] = [{} for _ in range(SLOTS)]
        self.is_draining = False
        self._hub = hub
        self._replay = replay
        self._per_second: float | None = None
        self._rate: Rate | None = None
        self.reconfigure(timeouts, limit=limit, rate=rate)
        self._reserved = 0
        self._emptied = asyncio.Event()
        self._deal = count()
        self._ended = cache(metrics.disconnects.labels)

    def reconfigure(self, timeouts: Timeouts, *, limit: int, rate: float | None) -> None:
        """Take other settings. Streams that are open keep their maximum age, and stay if too many."""
        self.timeouts = timeouts
        self.heartbeat_ms = round(1000 * timeouts.heartbeat)
        """How long a stream is silent at the most, if its client did not ask for less."""
        self.short_heartbeats.reconfigure(timeouts)
        self.limit = limit
        if rate != self._per_second:
            self._per_second = rate
            self._rate = None if rate is None else Rate(rate)

    def retry_ms(self, *, jitter: bool) -> int:
        """Return the reconnect delay to tell a client, in milliseconds."""
        retry = self.timeouts.retry
        return round(1000 * (jittered(retry, 0.5) if jitter else retry))

    def close_block(self, reason: str, id: EventId | None = None) -> bytes:
        """Return the ``stream.close`` that ends a stream, with a jittered ``retry:``, or `NEVER_MS`.

        ``id`` is for a stream that carried none: the one that its client came with.
        """
        reconnects = reason != "replaced"
        told = {"reason": reason, "reconnect": reconnects}
        retry = self.retry_ms(jitter=True) if reconnects else NEVER_MS
        return control_block("stream.close", told, retry=retry, id=id)

    def reserve(
        self,
        subscription: Subscription,
        hold: Hold = FREE,
        *,
        heartbeat: HeartbeatOptions = USUAL,
        may_ask: bool = True,
    ) -> "Place":
        """Take a place for a stream that is about to open. Raises Overload.

        ``may_ask`` False: whoever opens it is not one to answer heartbeats, whatever its channels ask.
        """
        if self.is_draining:
            raise Draining("the gateway is shutting down")
        # A client is never refused because of the stream that it has lost and this one replaces.
        if len(self.open) + self._reserved >= self.limit + hold.replaces:
            raise Full(f"limits.connections ({self.limit}) is reached")
        if self._rate is not None and not self._rate.try_take():
            raise TooManyAtOnce("limits.connect_rate is reached")
        rule = self.acks.rule(subscription) if may_ask else None
        return Place(self, subscription, hold, heartbeat, rule)

    def opening_at_once(self, subscription: Subscription, start: Start) -> Opening | None:
        """Decide where a stream begins; None where `opening` must read the log first. Raises Unavailable."""
        return self._replay.open_at_once(subscription, start)

    async def opening(self, subscription: Subscription, start: Start) -> Opening:
        """Decide where a stream begins. Raises Unavailable. Cancelling is safe."""
        return await self._replay.open(subscription, start)

    def begin(self, stream: Connection, opening: Opening, sent: int) -> None:
        """Let a stream live: its transport is its own, and ``sent`` bytes of body were written."""
        now = asyncio.get_running_loop().time()
        stream.told = dict(opening.told)
        stream.bytes = sent
        stream.opened = now
        stream.expires = now + jittered(self.timeouts.connection, AGE_JITTER)
        hold = stream.hold
        if hold.grant.expires is not None:
            left = hold.grant.left(time.time())
            if left < stream.expires - now:
                stream.expires, stream.expiry = now + left, "token_expired"
        stream.slot = next(self._deal) % SLOTS
        self.open[stream] = self.slots[stream.slot][stream] = None
        if stream.asked is not None:
            self.acks.begins(stream.asked)
        if stream.heartbeat is not None:
            self.short_heartbeats.begins(stream, stream.heartbeat)
        for name in stream.subscription.names:
            self.listeners[name] += 1
        self.metrics.connections.value += 1
        self.metrics.bytes_sent.value += sent
        if hold.client is not None:
            hold.begins(stream)
        if self.is_draining:  # began while the request was under way
            stream.end("draining")
            return
        if stream.expires - now < self.timeouts.heartbeat:
            self.expire(stream, now, within=self.timeouts.heartbeat)
        if stream.paused:  # by its first bytes, before anybody looked after it
            self._watch(stream)
        self._replay.catch_up(stream)

    def expire(self, stream: Connection, now: float, *, within: float) -> None:
        """End a stream whose time is over, or see to it if that comes ``within`` so many seconds."""
        left = stream.expires - now
        if left <= 0:
            stream.end(stream.expiry)
        elif left < within:  # nobody visits it before then
            asyncio.get_running_loop().call_later(left, stream.end, stream.expiry)

    def revoke(self, withdrawal: Withdrawal) -> int:
        """End the streams that are meant, a slice per turn of the loop; returns how many."""
        meant = []
        for stream in self.open:
            if stream.closing is None:
                why = withdrawal.means(stream.hold.grant, stream.subscription.declared, stream.origin)
                if why is not None:
                    meant.append((stream, why))
        if meant:
            self._hub.schedule(_end_some, meant)
        return len(meant)

    def closes(self, stream: Connection) -> None:
        """A stream has written its last byte, or will write none."""
        self._hub.leave(stream)
        self._watch(stream)

    def pauses(self, stream: Connection) -> None:
        """A stream's transport is full."""
        self._hub.leave(stream)
        self._watch(stream)

    def resumes(self, stream: Connection) -> None:
        """A stream's transport has room again."""
        if stream.closing is None:
            self.stalled.pop(stream, None)
            self._replay.catch_up(stream)

    def lost(self, stream: Connection) -> None:
        """A stream's transport is gone: the only way out, whoever ended it."""
        if stream not in self.open:
            return
        self._hub.leave(stream)
        self._hub.unwatch(stream.subscription)
        stream.hold.release()
        del self.open[stream], self.slots[stream.slot][stream]
        if stream.asked is not None:
            self.acks.ends(stream.asked)
        heartbeat = self.timeouts.heartbeat
        if stream.heartbeat is not None:
            self.short_heartbeats.ends(stream, stream.heartbeat)
            heartbeat = self.short_heartbeats.interval(stream.heartbeat.asked)
        for name in stream.subscription.names:
            self.listeners[name] -= 1
        self.stalled.pop(stream, None)
        seconds = asyncio.get_running_loop().time() - stream.opened
        self.reconnects.ended(stream, seconds, heartbeat)
        reason = stream.closing or "client_closed"
        self._ended(reason).inc()
        self.metrics.connection_seconds.observe(seconds)
        log.info(
            "stream_closed",
            connection=stream.id,
            channels=stream.subscription.channels,
            reason=reason,
            seconds=round(seconds, 3),
            events=stream.events,
            bytes=stream.bytes,
        )
        if not self.open:
            self._emptied.set()

    def lagging(self) -> int:
        """Return how many streams are behind the head."""
        return sum(1 for stream in self.open if stream.audience is None and stream.closing is None)

    def furthest(self) -> float:
        """Return how many seconds of the log the stream that is furthest behind has not got yet."""
        head = self._hub.head.ms
        behind = (
            head - stream.cursor.ms
            for stream in self.open
            if stream.audience is None and stream.closing is None
        )
        return max(0, *behind, 0) / 1000

    async def drain(self, seconds: float) -> None:
        """Refuse new streams and end all, evenly: at `DRAIN_RATE`, but within most of ``seconds``.

        What is left after ``seconds`` is cut.
        """
        self.is_draining = True
        loop = asyncio.get_running_loop()
        started = loop.time()
        streams = list(self.open)
        random.shuffle(streams)  # not the oldest first: they came together and would return together
        total = len(streams)
        spread = min(seconds * _DRAIN_SPREAD, total / DRAIN_RATE)
        while streams:
            elapsed = loop.time() - started
            due = total if elapsed >= spread else max(1, round(total * elapsed / spread))
            while streams and total - len(streams) < due:
                streams.pop().end("draining")
            if streams:
                await asyncio.sleep(_DRAIN_TICK)
        try:
            async with asyncio.timeout_at(started + seconds):
                while self.open:
                    self._emptied.clear()
                    await self._emptied.wait()
        except TimeoutError:
            await self.abort("drain_timeout")

    async def abort(self, reason: str) -> None:
        """Cut every stream now."""
        self.is_draining = True
        for stream in list(self.open):
            stream.abort(reason)
        await asyncio.sleep(0)  # connection_lost runs in the next turn

    def _watch(self, stream: Connection) -> None:
        if stream in self.open:
            self.stalled[stream] = None
            stream.progress = asyncio.get_running_loop().time()
            stream.left = stream.unread()


def _end_some(meant: list[tuple[Connection, str]], budget: int) -> tuple[int, bool]:
    """End some streams, for the hub's pump; returns how many, and whether there are more."""
    some = [meant.pop() for _ in range(min(budget, len(meant)))]
    for stream, why in some:
        try:
            stream.end(why)
        except Exception:  # none may stay open because of another one
            log.exception("stream_not_ended", connection=stream.id)
            stream.abort(why)
    return len(some), bool(meant)


class Place:
    """A stream's place under the limit from its request until its connection is gone. Pair with `release`."""

    __slots__ = (
        "_heartbeat",
        "_released",
        "_rule",
        "_streams",
        "_taken",
        "connection",
        "hold",
        "since",
        "subscription",
    )

    def __init__(
        self,
        streams: Streams,
        subscription: Subscription,
        hold: Hold,
        heartbeat: HeartbeatOptions,
        rule: Rule | None,
    ) -> None:
        self._streams = streams
        self._rule = rule
        self._heartbeat = heartbeat
        self.subscription = subscription
        self.hold = hold
        self.since = 0
        """How many revocations there were when it was decided."""
        self.connection = next(_ids)
        self._taken = self._released = False
        streams._reserved += 1
        streams._hub.watch(subscription)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the place back, or let the stream that took it count for itself. Harmless when repeated."""
        if self._released:
            return
        self._released = True
        self._streams._reserved -= 1
        if not self._taken:
            self.hold.release()
            self._streams._hub.unwatch(self.subscription)

    def first(self, channels: Sequence[str], opening: Opening) -> bytes:
        """Return the first blocks: ``stream.open`` with the channels as they were asked for, and gaps."""
        streams = self._streams
        asked, heartbeat = self._heartbeat.interval, streams.heartbeat_ms
        if asked is not None:
            heartbeat = round(1000 * streams.short_heartbeats.interval(asked))
        block = open_block(
            self.connection,
            channels,
            opening.resume,
            id=opening.id,
            retry=streams.retry_ms(jitter=False),
            heartbeat=heartbeat,
            more=b"" if self._rule is None else self._rule.told,
        )
        return block + opening.gaps

    def take(self, opening: Opening) -> Connection:
        """Return the connection that this place was for; the hub's watch is its own now."""
        self._taken = True
        stream = Connection(
            self._streams,
            self.connection,
            self.subscription,
            opening.cursor,
            opening.head,
            self.hold,
            heartbeat_events=self._heartbeat.as_events,
            heartbeat=self._streams.short_heartbeats.of(self._heartbeat.interval),
        )
        stream.resumed = opening.resume != "none"
        if self._rule is not None:
            stream.asked = Asked(stream, self._rule)
        return stream
