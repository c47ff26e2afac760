"""The registry of all streams of a node: they are counted, opened, paused and closed here alone."""

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache

import structlog

from gateway.auth.revocation import RevocationRule
from gateway.config.model.config import TimeoutsConfig
from gateway.core.backoff import jittered
from gateway.core.errors import Draining, Overloaded
from gateway.core.event import EventId
from gateway.core.sse import encode_control_frame, encode_open_frame
from gateway.core.token_bucket import TokenBucket
from gateway.hub.hub import Hub
from gateway.hub.replay import Replay, ResumePoint, StreamStart
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.acks.state import AckRule, AckState
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.connection import StreamConnection
from gateway.streams.heartbeat import HeartbeatSweep
from gateway.streams.quotas.client_limits import UNLIMITED, StreamQuota
from gateway.streams.reconnect_loops import ReconnectLoopDetector
from gateway.streams.short_heartbeats import DEFAULT_HEARTBEAT, HeartbeatOptions, ShortHeartbeatSweep

log = structlog.get_logger("gateway.streams")

AGE_JITTER = 0.2
"""Share by which the maximum age of a stream varies, so that those of one herd do not end together."""

NO_RECONNECT_RETRY_MS = 86_400_000
"""``retry:`` for a client that should not come back: a day. It stops those that ignore ``stream.close``."""

CONNECTION_ID_BYTES = 12
"""Random bytes in the id of a connection: 96 bits cannot be guessed."""

DRAIN_STREAMS_PER_SECOND = 50.0
"""Streams that a drain closes per second if its time allows.

Other nodes take so few reconnects easily: a core accepts about 10,000 a second. A node with a handful of
streams drains at once; one with many spreads them over the time that it has.
"""

_DRAIN_TICK_SECONDS = 0.05
_DRAIN_SPREAD_SHARE = 0.8  # of the drain time; the rest is for the last bytes to get out


def _random_ids() -> Iterator[str]:
    # In batches: each system call releases the GIL, which a busy thread may take; bench row: storm.
    while True:
        many = secrets.token_hex(256 * CONNECTION_ID_BYTES)
        for first in range(0, len(many), 2 * CONNECTION_ID_BYTES):
            yield many[first : first + 2 * CONNECTION_ID_BYTES]


_connection_ids = _random_ids()


class ConnectionLimitReached(Overloaded):
    """This node has as many streams as it may."""

    code = "overloaded"


class ConnectRateExceeded(Overloaded):
    """Streams open faster than this node may accept them."""

    code = "connect_rate"


class StreamRegistry:
    """Opens and closes the streams of a node. At most ``limit``, of which ``rate`` may open per second."""

    def __init__(
        self,
        hub: Hub,
        replay: Replay,
        metrics: Metrics,
        timeouts: TimeoutsConfig,
        ack_tracker: AckTracker,
        *,
        limit: int,
        rate: float | None = None,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self.metrics = metrics
        self.ack_tracker = ack_tracker
        self.streams_per_channel: Counter[str] = Counter()
        """How many streams are open on each channel, by declared name."""
        self.reconnect_loops = ReconnectLoopDetector(metrics)
        self.heartbeats = HeartbeatSweep(timeouts, background)
        self.short_heartbeats = ShortHeartbeatSweep(timeouts, background)
        self.is_draining = False
        self._hub = hub
        self._replay = replay
        self._connect_rate: float | None = None
        self._rate_limiter: TokenBucket | None = None
        self.reconfigure(timeouts, limit=limit, rate=rate)
        self._reserved_count = 0
        self._all_closed = asyncio.Event()
        self._disconnect_counter = cache(metrics.disconnects.labels)

    def reconfigure(self, timeouts: TimeoutsConfig, *, limit: int, rate: float | None) -> None:
        """Apply other settings. Open streams keep their maximum age, and stay even if they are too many."""
        self.timeouts = timeouts
        self.heartbeat_ms = round(1000 * timeouts.heartbeat)
        """The default interval, for ``stream.open``."""
        self.heartbeats.reconfigure(timeouts)
        self.short_heartbeats.reconfigure(timeouts)
        self.limit = limit
        if rate != self._connect_rate:
            self._connect_rate = rate
            self._rate_limiter = None if rate is None else TokenBucket(rate)

    @property
    def active(self) -> Collection[StreamConnection]:
        """The open streams."""
        return self.heartbeats.items.keys()

    def stop_sweeps(self) -> None:
        """Send no more heartbeats and close no more stalled streams; harmless when repeated."""
        self.heartbeats.stop()
        self.short_heartbeats.stop()

    def retry_ms(self, *, jitter: bool) -> int:
        """Return the reconnect delay for a client, in milliseconds."""
        retry = self.timeouts.retry
        return round(1000 * (jittered(retry, 0.5) if jitter else retry))

    def close_block(self, reason: str, id: EventId | None = None) -> bytes:
        """Return the ``stream.close`` that ends a stream, with a jittered ``retry:``.

        ``id`` is the client's own resume point, for a stream that sent no id.
        """
        reconnects = reason != "replaced"
        data = {"reason": reason, "reconnect": reconnects}
        retry = self.retry_ms(jitter=True) if reconnects else NO_RECONNECT_RETRY_MS
        return encode_control_frame("stream.close", data, retry_ms=retry, id=id)

    def acquire_slot(
        self,
        subscription: Subscription,
        quota: StreamQuota = UNLIMITED,
        *,
        heartbeat: HeartbeatOptions = DEFAULT_HEARTBEAT,
        is_ack_capable: bool = True,
    ) -> "StreamSlot":
        """Reserve a place for a stream that is about to open. Raises Overloaded.

        ``is_ack_capable`` False: its client never acknowledges heartbeats, whatever its channels require.
        """
        if self.is_draining:
            raise Draining("the gateway is shutting down")
        # A client is never rejected because of its own lost stream, which this one replaces.
        if len(self.active) + self._reserved_count >= self.limit + quota.is_replacing:
            raise ConnectionLimitReached(f"limits.connections ({self.limit}) is reached")
        if self._rate_limiter is not None and not self._rate_limiter.try_acquire():
            raise ConnectRateExceeded("limits.connect_rate is reached")
        rule = self.ack_tracker.rule_for(subscription) if is_ack_capable else None
        self._reserved_count += 1
        self._hub.watch(subscription)
        return StreamSlot(self, subscription, quota, heartbeat, rule)

    def release_slot(self, slot: "StreamSlot", *, has_stream: bool) -> None:
        """Free a place, and its quota and watch unless a stream has taken them over."""
        self._reserved_count -= 1
        if not has_stream:
            slot.quota.release()
            self._hub.unwatch(slot.subscription)

    def register(self, stream: StreamConnection, opening: StreamStart, sent: int) -> None:
        """Register an open stream, of whose body ``sent`` bytes were written."""
        now = asyncio.get_running_loop().time()
        stream.reported_gaps = dict(opening.reported_gaps)
        stream.bytes_sent = sent
        stream.opened_at = now
        stream.expires_at = now + jittered(self.timeouts.connection, AGE_JITTER)
        quota = stream.quota
        if quota.grant.expires is not None:
            left = quota.grant.seconds_left(time.time())
            if left < stream.expires_at - now:
                stream.expires_at, stream.expiry_reason = now + left, "token_expired"
        self.heartbeats.add(stream)
        if stream.ack_state is not None:
            self.ack_tracker.add(stream.ack_state)
        if stream.short_heartbeat is not None:
            self.short_heartbeats.add(stream)
        for name in stream.subscription.declared_names:
            self.streams_per_channel[name] += 1
        self.metrics.connections.value += 1
        self.metrics.bytes_sent.value += sent
        if quota.client_id is not None:
            quota.activate(stream)
        if self.is_draining:  # began while the request was under way
            stream.close("draining")
            return
        if stream.expires_at - now < self.timeouts.heartbeat:
            self.heartbeats.close_if_expired(stream, now, within=self.timeouts.heartbeat)
        if stream.is_paused:  # by its first bytes, before it was registered
            self.heartbeats.track_stalled(stream)
        self._replay.catch_up(stream)

    def revoke(self, rule: RevocationRule) -> int:
        """Close the streams that match, a slice per turn of the loop; returns how many."""
        matches = []
        for stream in self.active:
            if stream.close_reason is None:
                why = rule.match(stream.quota.grant, stream.subscription.followed, stream.origin)
                if why is not None:
                    matches.append((stream, why))
        if matches:
            self._hub.schedule(_close_slice, matches)
        return len(matches)

    def on_stalled(self, stream: StreamConnection) -> None:
        """Take a stream whose transport is full, or that is closing, out of its audience."""
        self._hub.leave(stream)
        if stream in self.active:
            self.heartbeats.track_stalled(stream)

    def on_resumed(self, stream: StreamConnection) -> None:
        """Continue a stream whose transport has room again."""
        if stream.close_reason is None:
            self.heartbeats.stalled.pop(stream, None)
            self._replay.catch_up(stream)

    def on_connection_lost(self, stream: StreamConnection) -> None:
        """Remove a stream whose connection is gone: every stream ends here, whatever closed it."""
        if stream not in self.active:
            return
        self._hub.leave(stream)
        self._hub.unwatch(stream.subscription)
        stream.quota.release()
        self.heartbeats.remove(stream)
        self.heartbeats.stalled.pop(stream, None)
        if stream.ack_state is not None:
            self.ack_tracker.remove(stream.ack_state)
        heartbeat = self.timeouts.heartbeat
        if stream.short_heartbeat is not None:
            self.short_heartbeats.remove(stream)
            heartbeat = self.short_heartbeats.effective_seconds(stream.short_heartbeat.requested_seconds)
        for name in stream.subscription.declared_names:
            self.streams_per_channel[name] -= 1
        seconds = asyncio.get_running_loop().time() - stream.opened_at
        self.reconnect_loops.on_closed(stream, seconds, heartbeat)
        reason = stream.close_reason or "client_closed"
        self._disconnect_counter(reason).inc()
        self.metrics.connection_seconds.observe(seconds)
        log.info(
            "stream_closed",
            connection=stream.id,
            channels=stream.subscription.channels,
            reason=reason,
            seconds=round(seconds, 3),
            events=stream.events_sent,
            bytes=stream.bytes_sent,
        )
        if not self.active:
            self._all_closed.set()

    def lagging_count(self) -> int:
        """Return how many streams are lagging."""
        return sum(1 for _ in self._lagging())

    def max_lag_seconds(self) -> float:
        """Return how many seconds of the log the most lagging stream has not received yet."""
        head = self._hub.head.ms
        return max(0, *(head - stream.cursor.ms for stream in self._lagging()), 0) / 1000

    def _lagging(self) -> Iterator[StreamConnection]:
        return (each for each in self.active if each.audience is None and each.close_reason is None)

    async def drain(self, seconds: float) -> None:
        """Reject new streams and close all, at `DRAIN_STREAMS_PER_SECOND` but within most of ``seconds``.

        Streams that are left after ``seconds`` are aborted.
        """
        self.is_draining = True
        loop = asyncio.get_running_loop()
        started = loop.time()
        streams = list(self.active)
        random.shuffle(streams)  # not the oldest first: they came together and would return together
        total = len(streams)
        spread = min(seconds * _DRAIN_SPREAD_SHARE, total / DRAIN_STREAMS_PER_SECOND)
        while streams:
            elapsed = loop.time() - started
            due = total if elapsed >= spread else max(1, round(total * elapsed / spread))
            while streams and total - len(streams) < due:
                streams.pop().close("draining")
            if streams:
                await asyncio.sleep(_DRAIN_TICK_SECONDS)
        try:
            async with asyncio.timeout_at(started + seconds):
                while self.active:
                    self._all_closed.clear()
                    await self._all_closed.wait()
        except TimeoutError:
            await self.abort_all("drain_timeout")

    async def abort_all(self, reason: str) -> None:
        """Abort every stream now."""
        self.is_draining = True
        for stream in list(self.active):
            stream.abort(reason)
        await asyncio.sleep(0)  # connection_lost runs in the next turn


def _close_slice(matches: list[tuple[StreamConnection, str]], budget: int) -> tuple[int, bool]:
    """Close some streams, for the hub's pump; returns how many, and whether there are more."""
    some = [matches.pop() for _ in range(min(budget, len(matches)))]
    for stream, why in some:
        try:
            stream.close(why)
        except Exception:  # the others must be closed all the same
            log.exception("stream_not_ended", connection=stream.id)
            stream.abort(why)
    return len(some), bool(matches)


class StreamSlot:
    """A stream's place under the limits while it opens. Pair with `release`."""

    __slots__ = (
        "_ack_rule",
        "_has_stream",
        "_heartbeat_options",
        "_is_released",
        "_registry",
        "connection_id",
        "quota",
        "revocation_count",
        "subscription",
    )

    def __init__(
        self,
        registry: StreamRegistry,
        subscription: Subscription,
        quota: StreamQuota,
        heartbeat_options: HeartbeatOptions,
        ack_rule: AckRule | None,
    ) -> None:
        self._registry = registry
        self._ack_rule = ack_rule
        self._heartbeat_options = heartbeat_options
        self.subscription = subscription
        self.quota = quota
        self.revocation_count = 0
        """`RecentRevocations.count` when the request was authorized."""
        self.connection_id = next(_connection_ids)
        self._has_stream = self._is_released = False

    def __enter__(self) -> "StreamSlot":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Free the place, or leave it to the stream that was created. Harmless when repeated."""
        if not self._is_released:
            self._is_released = True
            self._registry.release_slot(self, has_stream=self._has_stream)

    async def prepare(self, resume_point: ResumePoint) -> StreamStart:
        """Reserve the quota on all nodes, and decide where the stream begins.

        Raises GatewayError. Releases the slot if it fails or is cancelled.
        """
        try:
            await self.quota.reserve(self.connection_id)
            return await self._registry._replay.resolve_start(self.subscription, resume_point)
        except BaseException:
            self.release()
            raise

    def first_blocks(self, channels: Sequence[str], opening: StreamStart) -> bytes:
        """Return the first blocks: ``stream.open`` with the channels as the client named them, and gaps."""
        streams = self._registry
        requested, heartbeat = self._heartbeat_options.interval_seconds, streams.heartbeat_ms
        if requested is not None:
            heartbeat = round(1000 * streams.short_heartbeats.effective_seconds(requested))
        block = encode_open_frame(
            self.connection_id,
            channels,
            opening.resume,
            id=opening.id,
            retry_ms=streams.retry_ms(jitter=False),
            heartbeat_ms=heartbeat,
            extra_members=b"" if self._ack_rule is None else self._ack_rule.open_member,
        )
        return block + opening.gap_blocks

    def create_connection(self, opening: StreamStart) -> StreamConnection:
        """Return the stream; it takes over the place, and the hub's watch of its channels."""
        self._has_stream = True
        stream = StreamConnection(
            self._registry,
            self.connection_id,
            self.subscription,
            opening.cursor,
            opening.head,
            self.quota,
            has_heartbeat_events=self._heartbeat_options.is_event,
            short_heartbeat=self._registry.short_heartbeats.create_state(
                self._heartbeat_options.interval_seconds
            ),
        )
        stream.is_resumed = opening.resume != "none"
        if self._ack_rule is not None:
            stream.ack_state = AckState(stream, self._ack_rule)
        return stream
