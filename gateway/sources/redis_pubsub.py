"""Redis PUBLISH as a source.

Pub/sub has no memory, so the only thing to get right is to notice every loss. redis-py reconnects
by itself and says nothing, so its retries are off here: whatever goes wrong ends `run`, and the
supervisor's next `run` tells the gap. A server that froze, or a network that went away without a
FIN, raises nothing anywhere: while no message comes, a PING goes out and its PONG has a deadline.
"""

import asyncio
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.config.template import Template
from gateway.errors import SourceError
from gateway.event import Record
from gateway.sources.base import Feed, Source

BATCH = 512
"""Most messages that are appended at once."""

TOPICS = 20_000
"""How many topics are remembered with the subscription that counts for them."""

_SUBSCRIBE_AT_ONCE = 1000
_WAITS = 3  # that a timeout is made of; a PING goes out after the first
_GLOB = re.compile(rb"\\(.)|([*?])|(.)", re.DOTALL)
_MESSAGES = ("message", "pmessage")
_CONFIRMATIONS = ("subscribe", "psubscribe")


def _regex(pattern: bytes) -> re.Pattern[bytes]:
    """Return what Redis's ``stringmatch`` does with a pattern of `Template.redis_pattern`."""

    def piece(match: re.Match[bytes]) -> bytes:
        escaped, wild, literal = match.groups()
        return {b"*": b".*", b"?": b"."}[wild] if wild else re.escape(escaped or literal)

    return re.compile(_GLOB.sub(piece, pattern), re.DOTALL)


class RedisPubSubSource(Source):
    """Subscribes to exact topics with SUBSCRIBE, to globs and templates with PSUBSCRIBE.

    ``timeout`` is how long (seconds) the server may give no sign of life.
    """

    def __init__(self, url: str, topics: Sequence[Template], *, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        # Bytes, because Redis matches bytes: '?' stands for one of them.
        self._exact = dict.fromkeys(topic.text.encode() for topic in topics if topic.is_exact)
        patterns = [topic.redis_pattern.encode() for topic in topics if not topic.is_exact]
        self._patterns = {pattern: _regex(pattern) for pattern in patterns}
        self._owner = lru_cache(maxsize=TOPICS)(self._find_owner)

    async def run(self, feed: Feed) -> None:
        client = Redis.from_url(
            self._url,
            # Reads wait in `get_message` with its own deadline; a socket timeout would be retried silently.
            socket_timeout=None,
            socket_connect_timeout=self._timeout,
            retry=Retry(NoBackoff(), 0),
            client_name="sse-gateway",
        )
        pubsub = client.pubsub()
        try:
            async with asyncio.timeout(2 * self._timeout):
                await self._subscribe(pubsub)
            await feed.connected()
            await self._read(pubsub, feed)
        except TimeoutError:
            raise SourceError(f"Redis gave no answer within {2 * self._timeout:g} s") from None
        except RedisError as error:
            raise SourceError(f"Redis: {error or type(error).__name__}") from error
        finally:
            # Closing writes to a server that may be frozen.
            with_deadline = asyncio.wait_for(self._close(pubsub, client), self._timeout)
            await asyncio.gather(with_deadline, return_exceptions=True)

    async def _subscribe(self, pubsub: PubSub) -> None:
        for names, subscribe in (
            (list(self._exact), pubsub.subscribe),
            (list(self._patterns), pubsub.psubscribe),
        ):
            for first in range(0, len(names), _SUBSCRIBE_AT_ONCE):
                await subscribe(*names[first : first + _SUBSCRIBE_AT_ONCE])
        confirmed = 0
        while confirmed < len(self._exact) + len(self._patterns):
            message = await pubsub.get_message(timeout=self._timeout)
            if message is not None and message["type"] in _CONFIRMATIONS:
                confirmed += 1

    async def _read(self, pubsub: PubSub, feed: Feed) -> None:
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
            feed.alive()
            batch = [message]
            while len(batch) < BATCH and (message := await pubsub.get_message(timeout=0)) is not None:
                batch.append(message)
            if any(each["type"] in _CONFIRMATIONS for each in batch):
                raise SourceError("the connection was replaced; messages may be lost")
            records = [record for each in batch if (record := self._record(each)) is not None]
            if records:
                await feed.publish(records)

    def _record(self, message: dict[str, Any]) -> Record | None:
        if message["type"] not in _MESSAGES:
            return None
        # Redis sends one copy per subscription that matches; the record is the same, so one counts.
        if message["pattern"] != self._owner(message["channel"]):
            return None
        # A topic that is not UTF-8 matches no route and is counted there.
        return Record(topic=message["channel"].decode(errors="replace"), payload=message["data"])

    def _find_owner(self, topic: bytes) -> bytes | None:
        """Return the first pattern that Redis matches with the topic; None where it is subscribed by name."""
        if topic in self._exact:
            return None
        return next((pattern for pattern, regex in self._patterns.items() if regex.fullmatch(topic)), None)

    @staticmethod
    async def _close(pubsub: PubSub, client: Redis) -> None:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await client.aclose()
