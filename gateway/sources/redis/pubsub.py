"""Redis PUBLISH as a source.

Pub/sub has no memory, so the only thing to get right is to notice every loss. redis-py reconnects
by itself and says nothing, so its retries are off here: whatever goes wrong ends `run`. A server that froze,
or a network that went away without a FIN, raises nothing anywhere: while no message comes, a PING goes
out and its PONG has a deadline.

Every node subscribes and keeps the last seconds in a `RecentMessages`; the one with the lease writes its tail into
the log, and with it the place that it reached. A node that takes over goes on behind that place. Where
its tail does not hold the place (after a connection was lost, or all nodes were away) a gap is told.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
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
from gateway.sources.base import Source, SourceContext, SourceGap, read_under_lease
from gateway.sources.redis.recent_messages import MarkerOffset, RecentMessages

# What a Redis pub/sub source is subscribed to, and the way from one set of topics to another.
#
# Every node must count the same records after a marker, so topics change at a marker: what is new is
# subscribed first, and its records are left out until a marker has come that was published after all
# subscriptions were confirmed. From there on the new topics count, and what is not wanted any more is
# unsubscribed.

MAX_CACHED_TOPICS = 20_000
"""How many topics are remembered with the subscription that counts for them."""

MAX_CACHED_TOPIC_BYTES = 1024
"""Bytes of the longest topic that is remembered: routes know none of more than 255 characters."""

_SUBSCRIBE_CHUNK = 1000
_GLOB = re.compile(rb"\\(.)|([*?])|(.)", re.DOTALL)
_NO_OWNER = b""


class TopicSet:
    """Exact names, and patterns. Bytes, because Redis matches bytes: '?' stands for one of them."""

    def __init__(self, topics: Sequence[Template]) -> None:
        self.exact = frozenset(topic.text.encode() for topic in topics if topic.is_exact)
        patterns = sorted(topic.redis_pattern.encode() for topic in topics if not topic.is_exact)
        self.patterns = {pattern: _compile_pattern(pattern) for pattern in patterns}
        # Places mean the same only to nodes that count the same records.
        self.fingerprint = hashlib.sha256(b"\n".join([*sorted(self.exact), b"", *patterns])).hexdigest()[:12]
        self._cached_owner = lru_cache(MAX_CACHED_TOPICS)(self._find_owner)

    def is_primary_copy(self, topic: bytes, pattern: bytes | None) -> bool:
        """Tell whether a copy of a message counts: Redis sends one per subscription that matches.

        ``pattern`` is what it came through; None where that was the topic's own name.
        """
        owner = self._cached_owner(topic) if len(topic) <= MAX_CACHED_TOPIC_BYTES else self._find_owner(topic)
        return owner == pattern

    def _find_owner(self, topic: bytes) -> bytes | None:
        if topic in self.exact:
            return None
        return next((each for each, regex in self.patterns.items() if regex.fullmatch(topic)), _NO_OWNER)


class TopicChange:
    """On the way from some topics to others, on one connection."""

    def __init__(self, old_topics: TopicSet, new_topics: TopicSet) -> None:
        self.old_topics = old_topics
        self.new_topics = new_topics
        self.unconfirmed_count = 0
        """Subscriptions that Redis has not confirmed yet."""
        self.marker = ""
        """The one with which the new topics begin to count; empty until it is published."""

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to what is new."""
        new, old = self.new_topics, self.old_topics
        self.unconfirmed_count = await subscribe_topics(
            pubsub, new.exact - old.exact, new.patterns.keys() - old.patterns
        )

    def create_marker(self) -> str:
        """Return the marker to publish."""
        self.marker = secrets.token_hex(6)
        return self.marker

    async def unsubscribe(self, pubsub: PubSub) -> None:
        """Let go of what is not wanted any more."""
        new, old = self.new_topics, self.old_topics
        for names, let_go in (
            (old.exact - new.exact, pubsub.unsubscribe),
            (old.patterns.keys() - new.patterns, pubsub.punsubscribe),
        ):
            for some in _chunks(names):
                await let_go(*some)  # without a name it would be all of them


async def subscribe_topics(pubsub: PubSub, exact: Iterable[bytes], patterns: Iterable[bytes]) -> int:
    """Ask for subscriptions, and return how many confirmations to expect."""
    asked = 0
    for names, ask in ((exact, pubsub.subscribe), (patterns, pubsub.psubscribe)):
        for some in _chunks(names):
            await ask(*some)
            asked += len(some)
    return asked


def _chunks(names: Iterable[bytes]) -> Iterable[Sequence[bytes]]:
    every = sorted(names)
    return [every[first : first + _SUBSCRIBE_CHUNK] for first in range(0, len(every), _SUBSCRIBE_CHUNK)]


def _compile_pattern(pattern: bytes) -> re.Pattern[bytes]:
    """Return what Redis's ``stringmatch`` does with a pattern of `Template.redis_pattern`."""

    def piece(match: re.Match[bytes]) -> bytes:
        escaped, wild, literal = match.groups()
        return {b"*": b".*", b"?": b"."}[wild] if wild else re.escape(escaped or literal)

    return re.compile(_GLOB.sub(piece, pattern), re.DOTALL)


log = structlog.get_logger("gateway.sources")

MAX_APPEND_RECORDS = 512
"""Most messages that are appended at once."""

MARKER_CHANNEL = "sse-gateway:marks"
"""The Redis channel on which nodes publish markers, on the upstream itself."""

MARKER_INTERVAL_SECONDS = 1.0
"""How often a busy source is marked."""

_MARKER = re.compile(rb"[0-9a-f]{12}")
_WAITS_PER_TIMEOUT = 3  # that a timeout is made of; a PING goes out after the first
_MESSAGE_TYPES = ("message", "pmessage")
_CONFIRMATION_TYPES = ("subscribe", "psubscribe")


class RedisPubSubSource(Source):
    """Subscribes to exact topics with SUBSCRIBE, to globs and templates with PSUBSCRIBE.

    ``timeout`` is how long (seconds) the server may give no sign of life.
    """

    def __init__(self, url: str, topics: Sequence[Template], *, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._can_publish_markers = True
        self._desired_topics = self._topics = TopicSet(topics)
        self._topic_change: TopicChange | None = None
        self._topic_change_wakeup = asyncio.Event()

    def update_topics(self, topics: Sequence[Template]) -> bool:
        self._desired_topics = TopicSet(topics)
        self._topic_change_wakeup.set()
        return True

    async def run(self, context: SourceContext) -> None:
        self._topics, self._topic_change = self._desired_topics, None
        client = Redis.from_url(
            self._url,
            # Reads wait in `get_message` with its own deadline; a socket timeout would be retried silently.
            socket_timeout=None,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            **default_user_options(parse_url(self._url)),
        )
        pubsub = client.pubsub()
        tail = RecentMessages(self._topics.fingerprint)
        try:
            async with asyncio.timeout(2 * self._timeout):
                await self._subscribe(pubsub)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_messages(pubsub, tail, context))
                await self._publish_and_await_marker(client, tail)
                context.report_connected()
                group.create_task(self._append_whenever_leased(client, tail, context))
                group.create_task(self._run_markers(client, tail, context))
                group.create_task(self._run_topic_changes(client, pubsub, tail))
        except ExceptionGroup as group_of:
            raise self._to_source_error(group_of.exceptions[0]) from None
        except (TimeoutError, RedisError) as error:
            raise self._to_source_error(error) from None
        finally:
            # Closing writes to a server that may be frozen.
            with_deadline = asyncio.wait_for(self._close(pubsub, client), self._timeout)
            await asyncio.gather(with_deadline, return_exceptions=True)

    async def _subscribe(self, pubsub: PubSub) -> None:
        await pubsub.subscribe(MARKER_CHANNEL)
        try:
            await self._await_confirmations(pubsub, 1)
            self._can_publish_markers = True
        except NoPermissionError as error:
            self._disable_markers(error)
        await self._await_confirmations(
            pubsub, await subscribe_topics(pubsub, self._topics.exact, self._topics.patterns)
        )

    async def _await_confirmations(self, pubsub: PubSub, count: int) -> None:
        while count:
            message = await pubsub.get_message(timeout=self._timeout)
            if message is not None and message["type"] in _CONFIRMATION_TYPES:
                count -= 1

    def _disable_markers(self, error: NoPermissionError) -> None:
        """Go on with markers of this node's own, which no other one sees: a takeover tells a gap."""
        self._can_publish_markers = False
        log.info("source_markers_unavailable", channel=MARKER_CHANNEL, error=str(error))

    async def _run_topic_changes(self, client: Redis, pubsub: PubSub, recent: RecentMessages) -> None:
        """Bring the subscriptions to what is wanted, a step whenever `_parse_record` or a reload has news."""
        while True:
            await self._advance_topic_change(client, pubsub, recent)
            await self._topic_change_wakeup.wait()
            self._topic_change_wakeup.clear()

    async def _advance_topic_change(self, client: Redis, pubsub: PubSub, recent: RecentMessages) -> None:
        change = self._topic_change
        if change is None and self._desired_topics is not self._topics:
            change = self._topic_change = TopicChange(self._topics, self._desired_topics)
            await change.subscribe(pubsub)
        if change is None or change.unconfirmed_count:
            return
        if not change.marker and not await self._try_publish_marker(client, change.create_marker()):
            self._switch_topics(change, recent)
            recent.add_marker(change.marker)
        if self._topics is change.new_topics:
            await change.unsubscribe(pubsub)
            self._topic_change = None
            self._topic_change_wakeup.set()  # something else may be wanted by now

    def _switch_topics(self, change: TopicChange, recent: RecentMessages) -> None:
        self._topics = change.new_topics
        recent.switch_topics(change.new_topics.fingerprint)
        log.info("source_topics", exact=len(self._topics.exact), patterns=len(self._topics.patterns))

    def _handle_marker(self, marker: str, recent: RecentMessages) -> None:
        if self._topic_change is not None and marker == self._topic_change.marker:
            self._switch_topics(self._topic_change, recent)
            self._topic_change_wakeup.set()
        recent.add_marker(marker)

    def _handle_confirmation(self) -> None:
        """Take a confirmation. One that nobody waits for is redis-py's own: it has connected again."""
        if self._topic_change is None or not self._topic_change.unconfirmed_count:
            raise SourceError("the connection was replaced; messages may be lost")
        self._topic_change.unconfirmed_count -= 1
        self._topic_change_wakeup.set()

    async def _read_messages(self, pubsub: PubSub, recent: RecentMessages, context: SourceContext) -> None:
        """Put what comes into the tail, for as long as Redis shows a sign of life."""
        loop = asyncio.get_running_loop()
        silent = 0
        while True:
            message = await pubsub.get_message(timeout=self._timeout / _WAITS_PER_TIMEOUT)
            if message is None:
                # Counted in waits and not by the clock: when this process itself stood still, the
                # messages of that time lie in the socket and are not lost.
                silent += 1
                if silent == _WAITS_PER_TIMEOUT:
                    raise SourceError(f"Redis gave no sign of life for {self._timeout:g} s")
                if silent == 1:
                    async with asyncio.timeout(self._timeout):
                        await pubsub.ping()
                continue
            silent = 0
            while message is not None:
                if message["type"] in _CONFIRMATION_TYPES:
                    self._handle_confirmation()
                elif message["channel"] == MARKER_CHANNEL.encode() and message["type"] == "message":
                    if _MARKER.fullmatch(message["data"]):
                        self._handle_marker(message["data"].decode(), recent)
                elif (record := self._record(message)) is not None:
                    recent.add_records([record], loop.time())
                message = await pubsub.get_message(timeout=0)
            recent.drop_expired(loop.time(), has_lease=context.has_lease)

    async def _append_whenever_leased(
        self, client: Redis, recent: RecentMessages, context: SourceContext
    ) -> None:
        """Append the tail while this node has the lease; stand by while it has not."""
        await read_under_lease(
            context, lambda fence: self._append_under_lease(fence, client, recent, context)
        )

    async def _append_under_lease(
        self, fence: FencingToken, client: Redis, recent: RecentMessages, context: SourceContext
    ) -> None:
        recent.written_until = await self._find_start(fence, client, recent, context)
        stored = ""
        while True:
            if recent.written_until < recent.first_number:  # the log was away for longer than the tail holds
                recent.written_until = recent.first_number
                place = recent.offset_at(recent.first_number, unix_ms())
                await context.publish([], str(place), fence, gap=SourceGap(unix_ms()))
            records = recent.records(recent.written_until, MAX_APPEND_RECORDS)
            until = recent.written_until + len(records)
            place = recent.offset_at(until, unix_ms())
            if records or place.marker != stored:
                await context.publish(records, str(place), fence)
                stored = place.marker
                recent.written_until = until
            if len(records) < MAX_APPEND_RECORDS:
                await recent.wait_for_change()

    async def _find_start(
        self, fence: FencingToken, client: Redis, recent: RecentMessages, context: SourceContext
    ) -> int:
        """Return the number of the first record that the log does not hold, and tell a gap before it."""
        text = await context.read_offset()
        place = MarkerOffset.parse(text) if text is not None else None
        if place is not None and recent.find_number(place) is None:
            # Its marker may still be on the way; behind one of our own it would have come.
            await self._publish_and_await_marker(client, recent)
        number = recent.find_number(place) if place is not None else None
        if number is not None:
            return number
        if text is None:
            since, start = context.missed_since_ms, recent.first_number
        elif place is None:
            since, start = unix_ms(), recent.next_number
        else:
            # A gap is told, so what is in doubt is left out: what came before the place was reached.
            since, start = (
                place.reached_ms,
                recent.first_number_since(
                    asyncio.get_running_loop().time() - (unix_ms() - place.reached_ms) / 1000
                ),
            )
        start = max(start, recent.written_until)  # what this node wrote itself before it lost the lease
        position = str(recent.offset_at(start, unix_ms()))
        await context.publish([], position, fence, gap=None if since is None else SourceGap(since))
        return start

    async def _run_markers(self, client: Redis, recent: RecentMessages, context: SourceContext) -> None:
        """Mark a busy source now and then, so that a place is found by those who came later."""
        while True:
            await asyncio.sleep(jittered(MARKER_INTERVAL_SECONDS, 0.2))
            if context.has_lease and recent.records_since_marker:
                await self._publish_marker(client, recent)

    async def _publish_and_await_marker(self, client: Redis, recent: RecentMessages) -> None:
        """Publish a marker and wait until it comes: all that is published from then on has a place."""
        marker = await self._publish_marker(client, recent)
        async with asyncio.timeout(self._timeout):
            while not recent.has_seen_marker(marker):
                await recent.wait_for_change()

    async def _publish_marker(self, client: Redis, recent: RecentMessages) -> str:
        marker = secrets.token_hex(6)
        if not await self._try_publish_marker(client, marker):
            recent.add_marker(marker)
        return marker

    async def _try_publish_marker(self, client: Redis, marker: str) -> bool:
        """Publish a marker; False where this client may not."""
        if self._can_publish_markers:
            try:
                async with asyncio.timeout(self._timeout):
                    await client.publish(MARKER_CHANNEL, marker)
            except NoPermissionError as error:
                self._disable_markers(error)
        return self._can_publish_markers

    def _record(self, message: dict[str, Any]) -> Record | None:
        # Other gateways' words, and this one's own where the log is in the same Redis.
        if message["type"] not in _MESSAGE_TYPES or message["channel"].startswith(b"sse-gateway:"):
            return None
        if not self._topics.is_primary_copy(message["channel"], message["pattern"]):
            return None
        return Record(topic=decode_lossless(message["channel"]), payload=message["data"])

    def _to_source_error(self, error: BaseException) -> Exception:
        if isinstance(error, TimeoutError):
            return SourceError(f"Redis gave no answer within {2 * self._timeout:g} s")
        if isinstance(error, RedisError):
            return SourceError(f"Redis: {error or type(error).__name__}")
        return error if isinstance(error, Exception) else SourceError(type(error).__name__)

    @staticmethod
    async def _close(pubsub: PubSub, client: Redis) -> None:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await client.aclose()
