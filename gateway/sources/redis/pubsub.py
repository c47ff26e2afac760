"""Redis PUBLISH as a source.

Pub/sub has no memory, so the only thing to get right is to notice every loss. redis-py reconnects
by itself and says nothing, so its retries are off here: whatever goes wrong ends `run`. A server that froze,
or a network that went away without a FIN, raises nothing anywhere: while no message comes, a PING goes
out and its PONG has a deadline.

Every node subscribes and keeps the last seconds in a `Tail`; the one with the lease writes its tail into
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
from gateway.core.event import Fence, Record, text_of
from gateway.net.redis_target import user_of
from gateway.sources.base import Feed, Gap, Source, read_under_lease
from gateway.sources.redis.recent_messages import Place, Tail

# What a Redis pub/sub source is subscribed to, and the way from one set of topics to another.
#
# Every node must count the same records after a marker, so topics change at a marker: what is new is
# subscribed first, and its records are left out until a marker has come that was published after all
# subscriptions were confirmed. From there on the new topics count, and what is not wanted any more is
# unsubscribed.

REMEMBERED = 20_000
"""How many topics are remembered with the subscription that counts for them."""

LONGEST = 1024
"""Bytes of the longest topic that is remembered: routes know none of more than 255 characters."""

_AT_ONCE = 1000
_GLOB = re.compile(rb"\\(.)|([*?])|(.)", re.DOTALL)
_NOBODY = b""


class Topics:
    """Exact names, and patterns. Bytes, because Redis matches bytes: '?' stands for one of them."""

    def __init__(self, topics: Sequence[Template]) -> None:
        self.exact = frozenset(topic.text.encode() for topic in topics if topic.is_exact)
        patterns = sorted(topic.redis_pattern.encode() for topic in topics if not topic.is_exact)
        self.patterns = {pattern: _regex(pattern) for pattern in patterns}
        # Places mean the same only to nodes that count the same records.
        self.plan = hashlib.sha256(b"\n".join([*sorted(self.exact), b"", *patterns])).hexdigest()[:12]
        self._owner = lru_cache(REMEMBERED)(self._find_owner)

    def counts(self, topic: bytes, pattern: bytes | None) -> bool:
        """Tell whether a copy of a message counts: Redis sends one per subscription that matches.

        ``pattern`` is what it came through; None where that was the topic's own name.
        """
        owner = self._owner(topic) if len(topic) <= LONGEST else self._find_owner(topic)
        return owner == pattern

    def _find_owner(self, topic: bytes) -> bytes | None:
        if topic in self.exact:
            return None
        return next((each for each, regex in self.patterns.items() if regex.fullmatch(topic)), _NOBODY)


class Change:
    """On the way from some topics to others, on one connection."""

    def __init__(self, before: Topics, topics: Topics) -> None:
        self.before = before
        self.topics = topics
        self.unconfirmed = 0
        """Subscriptions that Redis has not confirmed yet."""
        self.marker = ""
        """The one with which the new topics begin to count; empty until it is published."""

    async def subscribe(self, pubsub: PubSub) -> None:
        """Subscribe to what is new."""
        new, old = self.topics, self.before
        self.unconfirmed = await subscribe(pubsub, new.exact - old.exact, new.patterns.keys() - old.patterns)

    def mark(self) -> str:
        """Return the marker to publish."""
        self.marker = secrets.token_hex(6)
        return self.marker

    async def unsubscribe(self, pubsub: PubSub) -> None:
        """Let go of what is not wanted any more."""
        new, old = self.topics, self.before
        for names, let_go in (
            (old.exact - new.exact, pubsub.unsubscribe),
            (old.patterns.keys() - new.patterns, pubsub.punsubscribe),
        ):
            for some in _some(names):
                await let_go(*some)  # without a name it would be all of them


async def subscribe(pubsub: PubSub, exact: Iterable[bytes], patterns: Iterable[bytes]) -> int:
    """Ask for subscriptions, and return how many confirmations to expect."""
    asked = 0
    for names, ask in ((exact, pubsub.subscribe), (patterns, pubsub.psubscribe)):
        for some in _some(names):
            await ask(*some)
            asked += len(some)
    return asked


def _some(names: Iterable[bytes]) -> Iterable[Sequence[bytes]]:
    every = sorted(names)
    return [every[first : first + _AT_ONCE] for first in range(0, len(every), _AT_ONCE)]


def _regex(pattern: bytes) -> re.Pattern[bytes]:
    """Return what Redis's ``stringmatch`` does with a pattern of `Template.redis_pattern`."""

    def piece(match: re.Match[bytes]) -> bytes:
        escaped, wild, literal = match.groups()
        return {b"*": b".*", b"?": b"."}[wild] if wild else re.escape(escaped or literal)

    return re.compile(_GLOB.sub(piece, pattern), re.DOTALL)


log = structlog.get_logger("gateway.sources")

BATCH = 512
"""Most messages that are appended at once."""

MARKS = "sse-gateway:marks"
"""The Redis channel on which nodes publish markers, on the upstream itself."""

MARK_SECONDS = 1.0
"""How often a busy source is marked."""

_MARKER = re.compile(rb"[0-9a-f]{12}")
_WAITS = 3  # that a timeout is made of; a PING goes out after the first
_MESSAGES = ("message", "pmessage")
_CONFIRMATIONS = ("subscribe", "psubscribe")


class RedisPubSubSource(Source):
    """Subscribes to exact topics with SUBSCRIBE, to globs and templates with PSUBSCRIBE.

    ``timeout`` is how long (seconds) the server may give no sign of life.
    """

    def __init__(self, url: str, topics: Sequence[Template], *, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._may_mark = True
        self._wanted = self._topics = Topics(topics)
        self._change: Change | None = None
        self._news = asyncio.Event()

    def retopic(self, topics: Sequence[Template]) -> bool:
        self._wanted = Topics(topics)
        self._news.set()
        return True

    async def run(self, feed: Feed) -> None:
        self._topics, self._change = self._wanted, None
        client = Redis.from_url(
            self._url,
            # Reads wait in `get_message` with its own deadline; a socket timeout would be retried silently.
            socket_timeout=None,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            **user_of(parse_url(self._url)),
        )
        pubsub = client.pubsub()
        tail = Tail(self._topics.plan)
        try:
            async with asyncio.timeout(2 * self._timeout):
                await self._subscribe(pubsub)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(pubsub, tail, feed))
                await self._anchor(client, tail)
                feed.connected()
                group.create_task(self._write(client, tail, feed))
                group.create_task(self._mark(client, tail, feed))
                group.create_task(self._follow(client, pubsub, tail))
        except ExceptionGroup as group_of:
            raise self._cause(group_of.exceptions[0]) from None
        except (TimeoutError, RedisError) as error:
            raise self._cause(error) from None
        finally:
            # Closing writes to a server that may be frozen.
            with_deadline = asyncio.wait_for(self._close(pubsub, client), self._timeout)
            await asyncio.gather(with_deadline, return_exceptions=True)

    async def _subscribe(self, pubsub: PubSub) -> None:
        await pubsub.subscribe(MARKS)
        try:
            await self._confirmed(pubsub, 1)
            self._may_mark = True
        except NoPermissionError as error:
            self._may_not_mark(error)
        await self._confirmed(pubsub, await subscribe(pubsub, self._topics.exact, self._topics.patterns))

    async def _confirmed(self, pubsub: PubSub, count: int) -> None:
        while count:
            message = await pubsub.get_message(timeout=self._timeout)
            if message is not None and message["type"] in _CONFIRMATIONS:
                count -= 1

    def _may_not_mark(self, error: NoPermissionError) -> None:
        """Go on with markers of this node's own, which no other one sees: a takeover tells a gap."""
        self._may_mark = False
        log.info("source_without_markers", channel=MARKS, error=str(error))

    async def _follow(self, client: Redis, pubsub: PubSub, tail: Tail) -> None:
        """Bring the subscriptions to what is wanted, a step whenever `_read` or a reload has news."""
        while True:
            await self._step(client, pubsub, tail)
            await self._news.wait()
            self._news.clear()

    async def _step(self, client: Redis, pubsub: PubSub, tail: Tail) -> None:
        change = self._change
        if change is None and self._wanted is not self._topics:
            change = self._change = Change(self._topics, self._wanted)
            await change.subscribe(pubsub)
        if change is None or change.unconfirmed:
            return
        if not change.marker and not await self._publish(client, change.mark()):
            self._switch(change, tail)
            tail.mark(change.marker)
        if self._topics is change.topics:
            await change.unsubscribe(pubsub)
            self._change = None
            self._news.set()  # something else may be wanted by now

    def _switch(self, change: Change, tail: Tail) -> None:
        self._topics = change.topics
        tail.replan(change.topics.plan)
        log.info("source_topics", exact=len(self._topics.exact), patterns=len(self._topics.patterns))

    def _marked(self, marker: str, tail: Tail) -> None:
        if self._change is not None and marker == self._change.marker:
            self._switch(self._change, tail)
            self._news.set()
        tail.mark(marker)

    def _confirm(self) -> None:
        """Take a confirmation. One that nobody waits for is redis-py's own: it has connected again."""
        if self._change is None or not self._change.unconfirmed:
            raise SourceError("the connection was replaced; messages may be lost")
        self._change.unconfirmed -= 1
        self._news.set()

    async def _read(self, pubsub: PubSub, tail: Tail, feed: Feed) -> None:
        """Put what comes into the tail, for as long as Redis shows a sign of life."""
        loop = asyncio.get_running_loop()
        silent = 0
        while True:
            message = await pubsub.get_message(timeout=self._timeout / _WAITS)
            if message is None:
                # Counted in waits and not by the clock: when this process itself stood still, the
                # messages of that time lie in the socket and are not lost.
                silent += 1
                if silent == _WAITS:
                    raise SourceError(f"Redis gave no sign of life for {self._timeout:g} s")
                if silent == 1:
                    async with asyncio.timeout(self._timeout):
                        await pubsub.ping()
                continue
            silent = 0
            while message is not None:
                if message["type"] in _CONFIRMATIONS:
                    self._confirm()
                elif message["channel"] == MARKS.encode() and message["type"] == "message":
                    if _MARKER.fullmatch(message["data"]):
                        self._marked(message["data"].decode(), tail)
                elif (record := self._record(message)) is not None:
                    tail.add([record], loop.time())
                message = await pubsub.get_message(timeout=0)
            tail.forget(loop.time(), is_leading=feed.is_leading)

    async def _write(self, client: Redis, tail: Tail, feed: Feed) -> None:
        """Append the tail while this node has the lease; stand by while it has not."""
        await read_under_lease(feed, lambda fence: self._write_as(fence, client, tail, feed))

    async def _write_as(self, fence: Fence, client: Redis, tail: Tail, feed: Feed) -> None:
        tail.written = await self._begin(fence, client, tail, feed)
        stored = ""
        while True:
            if tail.written < tail.first:  # the log was away for longer than the tail holds
                tail.written = tail.first
                place = tail.place(tail.first, unix_ms())
                await feed.publish([], str(place), fence, gap=Gap(unix_ms()))
            records = tail.records(tail.written, BATCH)
            until = tail.written + len(records)
            place = tail.place(until, unix_ms())
            if records or place.marker != stored:
                await feed.publish(records, str(place), fence)
                stored = place.marker
                tail.written = until
            if len(records) < BATCH:
                await tail.change()

    async def _begin(self, fence: Fence, client: Redis, tail: Tail, feed: Feed) -> int:
        """Return the number of the first record that the log does not hold, and tell a gap before it."""
        text = await feed.position()
        place = Place.parse(text) if text is not None else None
        if place is not None and tail.find(place) is None:
            # Its marker may still be on the way; behind one of our own it would have come.
            await self._anchor(client, tail)
        number = tail.find(place) if place is not None else None
        if number is not None:
            return number
        if text is None:
            since, start = feed.missed_since, tail.first
        elif place is None:
            since, start = unix_ms(), tail.end
        else:
            # A gap is told, so what is in doubt is left out: what came before the place was reached.
            since, start = (
                place.ms,
                tail.since(asyncio.get_running_loop().time() - (unix_ms() - place.ms) / 1000),
            )
        start = max(start, tail.written)  # what this node wrote itself before it lost the lease
        position = str(tail.place(start, unix_ms()))
        await feed.publish([], position, fence, gap=None if since is None else Gap(since))
        return start

    async def _mark(self, client: Redis, tail: Tail, feed: Feed) -> None:
        """Mark a busy source now and then, so that a place is found by those who came later."""
        while True:
            await asyncio.sleep(jittered(MARK_SECONDS, 0.2))
            if feed.is_leading and tail.since_marker:
                await self._publish_marker(client, tail)

    async def _anchor(self, client: Redis, tail: Tail) -> None:
        """Publish a marker and wait until it comes: all that is published from then on has a place."""
        marker = await self._publish_marker(client, tail)
        async with asyncio.timeout(self._timeout):
            while not tail.has_seen(marker):
                await tail.change()

    async def _publish_marker(self, client: Redis, tail: Tail) -> str:
        marker = secrets.token_hex(6)
        if not await self._publish(client, marker):
            tail.mark(marker)
        return marker

    async def _publish(self, client: Redis, marker: str) -> bool:
        """Publish a marker; False where this client may not."""
        if self._may_mark:
            try:
                async with asyncio.timeout(self._timeout):
                    await client.publish(MARKS, marker)
            except NoPermissionError as error:
                self._may_not_mark(error)
        return self._may_mark

    def _record(self, message: dict[str, Any]) -> Record | None:
        # Other gateways' words, and this one's own where the log is in the same Redis.
        if message["type"] not in _MESSAGES or message["channel"].startswith(b"sse-gateway:"):
            return None
        if not self._topics.counts(message["channel"], message["pattern"]):
            return None
        return Record(topic=text_of(message["channel"]), payload=message["data"])

    def _cause(self, error: BaseException) -> Exception:
        if isinstance(error, TimeoutError):
            return SourceError(f"Redis gave no answer within {2 * self._timeout:g} s")
        if isinstance(error, RedisError):
            return SourceError(f"Redis: {error or type(error).__name__}")
        return error if isinstance(error, Exception) else SourceError(type(error).__name__)

    @staticmethod
    async def _close(pubsub: PubSub, client: Redis) -> None:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await client.aclose()
