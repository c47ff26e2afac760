"""Redis pub/sub as a source.

Pub/sub has no memory, so every loss must be noticed. redis-py would reconnect by itself and silently, so its
retries are off here: any failure ends `run`. A server that froze, or a network that vanished without a FIN,
raises no error at all: while no message arrives, a PING is sent, and its PONG has a deadline.

How it works. Every node subscribes and keeps the last seconds in a `RecentMessages`. The node with the lease
appends its recent messages to the log, together with the offset reached. A node that takes over continues
after that offset. If its own messages do not reach back that far (because a connection was lost, or all nodes
were down), it reports a gap.

Topics change at a *marker*, because all nodes must count the same records after it. New topics are subscribed
first, and their records are ignored until a marker arrives that was published after all subscriptions were
confirmed. From there on the new topics count, and the old ones are unsubscribed.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.clock import unix_ms
from gateway.core.errors import SourceError
from gateway.core.event import FencingToken, Record, decode_lossless
from gateway.net.redis_locator import default_user_options
from gateway.sources.base import SourceGap, upstream_errors
from gateway.sources.context import Source, SourceContext, read_under_lease
from gateway.sources.redis.recent_messages import MarkerOffset, RecentMessages

log = structlog.get_logger("gateway.sources")

MAX_CACHED_TOPICS = 20_000
"""Topics for which the subscription that counts is cached."""

MAX_CACHED_TOPIC_BYTES = 1024
"""Bytes of the longest topic that is cached: routes match none of more than 255 characters."""

MAX_APPEND_RECORDS = 512
"""Most messages that are appended at once."""

MARKER_CHANNEL = "sse-gateway:marks"
"""The Redis channel, on the upstream itself, on which nodes publish markers."""

MARKER_INTERVAL_SECONDS = 1.0
"""How often markers are published to a busy source."""

_SUBSCRIBE_CHUNK = 1000
_GLOB = re.compile(rb"\\(.)|([*?])|(.)", re.DOTALL)
_NO_OWNER = b""
_MARKER = re.compile(rb"[0-9a-f]{12}")
_WAITS_PER_TIMEOUT = 3  # the timeout is waited for in parts; a PING is sent after the first
_MESSAGE_TYPES = ("message", "pmessage")
_CONFIRMATION_TYPES = ("subscribe", "psubscribe")


class RedisPubSubSource(Source):
    """Subscribes to exact topics with SUBSCRIBE, to globs and templates with PSUBSCRIBE.

    ``timeout`` is how long (seconds) the server may stay silent.
    """

    def __init__(self, url: str, topics: Sequence[Template], *, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._topics = TopicSet(topics)
        self._reader: _PubSubReader | None = None

    def update_topics(self, topics: Sequence[Template]) -> bool:
        self._topics = TopicSet(topics)
        if self._reader is not None:
            self._reader.request_topics(self._topics)
        return True

    async def run(self, context: SourceContext) -> None:
        client = Redis.from_url(
            self._url,
            # Reads wait in `get_message` with its own deadline; a socket timeout would be retried silently.
            socket_timeout=None,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            **default_user_options(parse_url(self._url)),
        )
        reader = self._reader = _PubSubReader(client, self._topics, context, self._timeout)
        try:
            with upstream_errors("Redis", 2 * self._timeout, RedisError):
                await reader.run()
        finally:
            self._reader = None
            # With a deadline: closing writes to a server that may be frozen.
            closing = asyncio.wait_for(reader.close(), self._timeout)
            await asyncio.gather(closing, return_exceptions=True)


class TopicSet:
    """Exact topics and patterns, as bytes: Redis matches bytes, so '?' stands for one byte."""

    def __init__(self, topics: Sequence[Template]) -> None:
        self.exact = frozenset(topic.text.encode() for topic in topics if topic.is_exact)
        patterns = sorted(topic.redis_pattern.encode() for topic in topics if not topic.is_exact)
        self.patterns = {pattern: _compile_pattern(pattern) for pattern in patterns}
        # Offsets count records, so only nodes with the same topics understand each other's.
        self.fingerprint = hashlib.sha256(b"\n".join([*sorted(self.exact), b"", *patterns])).hexdigest()[:12]
        self._cached_owner = lru_cache(MAX_CACHED_TOPICS)(self._find_owner)

    def is_primary_copy(self, topic: bytes, pattern: bytes | None) -> bool:
        """Return whether a copy of a message counts: Redis sends one per subscription that matches.

        ``pattern`` is the one that this copy matched, None for an exact subscription.
        """
        owner = self._cached_owner(topic) if len(topic) <= MAX_CACHED_TOPIC_BYTES else self._find_owner(topic)
        return owner == pattern

    def _find_owner(self, topic: bytes) -> bytes | None:
        if topic in self.exact:
            return None
        return next((each for each, regex in self.patterns.items() if regex.fullmatch(topic)), _NO_OWNER)


class _TopicChange:
    """A switch from some topics to others on one connection: subscribe, confirm, switch at a marker."""

    def __init__(self, old: TopicSet, new: TopicSet) -> None:
        self.new_topics = new
        self.added = new.exact - old.exact, new.patterns.keys() - old.patterns
        self.removed = old.exact - new.exact, old.patterns.keys() - new.patterns
        self.marker = secrets.token_hex(6)
        """The new topics count after this marker, which is published once all subscriptions are confirmed."""
        self.confirmed = asyncio.Event()
        self.switched = asyncio.Event()
        self._unconfirmed_count = sum(map(len, self.added))
        if not self._unconfirmed_count:
            self.confirmed.set()

    def confirm(self) -> None:
        """Count the confirmation of one subscription. Raises SourceError if none is outstanding."""
        if not self._unconfirmed_count:
            raise _connection_replaced()
        self._unconfirmed_count -= 1
        if not self._unconfirmed_count:
            self.confirmed.set()


class _PubSubReader:
    """Reads over one connection, and appends while this node holds the lease."""

    def __init__(self, client: Redis, topics: TopicSet, context: SourceContext, timeout: float) -> None:
        self._client = client
        self._pubsub = client.pubsub()
        self._context = context
        self._timeout = timeout
        self._recent = RecentMessages(topics.fingerprint)
        self._can_publish_markers = True
        self._topics = topics
        self._requested_topics = topics
        self._topics_requested = asyncio.Event()
        self._topic_change: _TopicChange | None = None

    async def run(self) -> None:
        """Read until cancelled. Raises RedisError, TimeoutError, SourceError or an ExceptionGroup of them."""
        async with asyncio.timeout(2 * self._timeout):
            await self._subscribe()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_messages())
            await self._publish_and_await_marker()
            self._context.report_connected()
            group.create_task(read_under_lease(self._context, self._append_under_lease))
            group.create_task(self._run_markers())
            group.create_task(self._run_topic_changes())

    async def close(self) -> None:
        """Close the connections."""
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._client.aclose()

    def request_topics(self, topics: TopicSet) -> None:
        """Switch to other topics soon, without a pause."""
        self._requested_topics = topics
        self._topics_requested.set()

    # Subscribing.

    async def _subscribe(self) -> None:
        await self._pubsub.subscribe(MARKER_CHANNEL)
        try:
            await self._await_confirmations(1)
        except NoPermissionError as error:
            self._disable_markers(error)
        await _run_in_chunks(self._pubsub.subscribe, self._topics.exact)
        await _run_in_chunks(self._pubsub.psubscribe, self._topics.patterns)
        await self._await_confirmations(len(self._topics.exact) + len(self._topics.patterns))

    async def _await_confirmations(self, count: int) -> None:
        while count:
            message = await self._pubsub.get_message(timeout=self._timeout)
            if message is not None and message["type"] in _CONFIRMATION_TYPES:
                count -= 1

    async def _run_topic_changes(self) -> None:
        while True:
            await self._topics_requested.wait()
            self._topics_requested.clear()
            while self._requested_topics is not self._topics:
                await self._change_topics(_TopicChange(self._topics, self._requested_topics))

    async def _change_topics(self, change: _TopicChange) -> None:
        self._topic_change = change
        exact, patterns = change.added
        await _run_in_chunks(self._pubsub.subscribe, exact)
        await _run_in_chunks(self._pubsub.psubscribe, patterns)
        await change.confirmed.wait()
        await self._publish_marker(change.marker)
        await change.switched.wait()  # `_handle_marker` switches, between two messages
        exact, patterns = change.removed
        await _run_in_chunks(self._pubsub.unsubscribe, exact)
        await _run_in_chunks(self._pubsub.punsubscribe, patterns)
        self._topic_change = None

    # Markers.

    async def _run_markers(self) -> None:
        """Publish markers to a busy source, so that nodes that connected later find the offset."""
        while True:
            await asyncio.sleep(jittered(MARKER_INTERVAL_SECONDS, 0.2))
            if self._context.has_lease and self._recent.records_since_marker:
                await self._publish_marker(secrets.token_hex(6))

    async def _publish_and_await_marker(self) -> None:
        """Publish a marker and wait until it arrives: every later message then has an offset."""
        marker = secrets.token_hex(6)
        await self._publish_marker(marker)
        async with asyncio.timeout(self._timeout):
            while not self._recent.has_seen_marker(marker):
                await self._recent.wait_for_change()

    async def _publish_marker(self, marker: str) -> None:
        """Publish a marker; without permission for that, it is this node's own and counts at once."""
        if self._can_publish_markers:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._client.publish(MARKER_CHANNEL, marker)
                return
            except NoPermissionError as error:
                self._disable_markers(error)
        self._handle_marker(marker)

    def _disable_markers(self, error: NoPermissionError) -> None:
        """Go on with markers that no other node sees, so that a takeover reports a gap."""
        self._can_publish_markers = False
        log.info("source_markers_unavailable", channel=MARKER_CHANNEL, error=str(error))

    def _handle_marker(self, marker: str) -> None:
        change = self._topic_change
        if change is not None and marker == change.marker:
            self._topics = change.new_topics
            self._recent.switch_topics(self._topics.fingerprint)
            change.switched.set()
            log.info("source_topics", exact=len(self._topics.exact), patterns=len(self._topics.patterns))
        self._recent.add_marker(marker)

    # Reading and appending.

    async def _read_messages(self) -> None:
        """Collect messages for as long as Redis shows a sign of life."""
        loop = asyncio.get_running_loop()
        silent_waits = 0
        while True:
            message = await self._pubsub.get_message(timeout=self._timeout / _WAITS_PER_TIMEOUT)
            if message is None:
                # Counts waits and not seconds: if this process itself was suspended, the messages of
                # that time are still in the socket.
                silent_waits += 1
                if silent_waits == _WAITS_PER_TIMEOUT:
                    raise SourceError(f"Redis gave no sign of life for {self._timeout:g} s")
                if silent_waits == 1:
                    async with asyncio.timeout(self._timeout):
                        await self._pubsub.ping()
                continue
            silent_waits = 0
            while message is not None:
                self._handle_message(message, loop.time())
                message = await self._pubsub.get_message(timeout=0)
            self._recent.drop_expired(loop.time(), has_lease=self._context.has_lease)

    def _handle_message(self, message: dict[str, Any], now: float) -> None:
        kind, channel = message["type"], message["channel"]
        if kind in _CONFIRMATION_TYPES:
            if self._topic_change is None:
                raise _connection_replaced()
            self._topic_change.confirm()
        elif channel == MARKER_CHANNEL.encode() and kind == "message":
            if _MARKER.fullmatch(message["data"]):
                self._handle_marker(message["data"].decode())
        elif (
            kind in _MESSAGE_TYPES
            # Other gateways' messages, or this one's own if its log is in the same Redis.
            and not channel.startswith(b"sse-gateway:")
            and self._topics.is_primary_copy(channel, message["pattern"])
        ):
            self._recent.add_record(Record(decode_lossless(channel), message["data"]), now)

    async def _append_under_lease(self, fence: FencingToken) -> None:
        recent = self._recent
        recent.written_until = await self._find_start(fence)
        stored_marker = ""
        while True:
            if recent.written_until < recent.first_number:  # the log was down for too long
                recent.written_until = recent.first_number
                offset = recent.offset_at(recent.first_number, unix_ms())
                await self._context.publish([], str(offset), fence, gap=SourceGap(unix_ms()))
            records = recent.records(recent.written_until, MAX_APPEND_RECORDS)
            until = recent.written_until + len(records)
            offset = recent.offset_at(until, unix_ms())
            if records or offset.marker != stored_marker:
                await self._context.publish(records, str(offset), fence)
                stored_marker = offset.marker
                recent.written_until = until
            if len(records) < MAX_APPEND_RECORDS:
                await recent.wait_for_change()

    async def _find_start(self, fence: FencingToken) -> int:
        """Return the number of the first record that is not in the log; if that is unknown, report a gap."""
        recent = self._recent
        text = await self._context.read_offset()
        offset = None if text is None else MarkerOffset.parse(text)
        if offset is not None:
            if recent.find_number(offset) is None:
                # Its marker may still be on the way; it would arrive before one that we publish now.
                await self._publish_and_await_marker()
            if (number := recent.find_number(offset)) is not None:
                return number
            # Leaves out what is in doubt, since a gap is reported anyway: messages from before the offset.
            since: int | None = offset.reached_ms
            age_seconds = (unix_ms() - offset.reached_ms) / 1000
            start = recent.first_number_since(asyncio.get_running_loop().time() - age_seconds)
        elif text is None:
            since, start = self._context.missed_since_ms, recent.first_number
        else:  # written by another version
            since, start = unix_ms(), recent.next_number
        start = max(start, recent.written_until)  # what this node appended before it lost the lease
        reached = str(recent.offset_at(start, unix_ms()))
        await self._context.publish([], reached, fence, gap=None if since is None else SourceGap(since))
        return start


async def _run_in_chunks(command: Callable[..., Awaitable[Any]], names: Iterable[bytes]) -> None:
    """Call a (un)subscribe command with all names, some at a time; UNSUBSCRIBE without names means all."""
    ordered = sorted(names)
    for first in range(0, len(ordered), _SUBSCRIBE_CHUNK):
        await command(*ordered[first : first + _SUBSCRIBE_CHUNK])


def _connection_replaced() -> SourceError:
    """Return the error for an unexpected confirmation: redis-py has reconnected and subscribed by itself."""
    return SourceError("the connection was replaced; messages may be lost")


def _compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """Return a regular expression that matches like Redis's ``stringmatch``."""

    def piece(match: re.Match[bytes]) -> bytes:
        escaped, wild, literal = match.groups()
        return {b"*": b".*", b"?": b"."}[wild] if wild else re.escape(escaped or literal)

    return re.compile(_GLOB.sub(piece, pattern), re.DOTALL)
