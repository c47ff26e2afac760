"""``redis://`` and its kin: one log for any number of hosts.

How it works. Every append is one call of ``append.lua``, which gives the ids, stores the events in a
stream per channel and publishes them; what waits meanwhile goes into the next call. Every node follows
one pub/sub channel with the whole log. Each message names the id before it, so a hole is seen at once:
then the streams read what they need (`Broker`'s ``lost``), each channel from its own stream, where
every event names the one before it and so tells by itself whether something is missing.

Pub/sub raises nothing when it dies quietly, so `_watch` publishes a canary and wants it back, compares
the log's head with what was followed, and asks Sentinel whether the master is still the master. Whatever
fails, the connections are given up and made anew, for ever; nothing of it reaches the streams but the
events, late.

Redis can forget: FLUSHALL, eviction, a failover that lost acknowledged writes. Nodes tell the script
the last id that they know of, and look for their last event when they come back; what the log lacks
makes everything older not whole.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
)

from gateway.broker.base import Batch, Broker, Deliver, Lost, Page, Recent, Span
from gateway.broker.delivery import Delivery
from gateway.broker.redis.pool import Pool, close, pool
from gateway.broker.redis.shared_store import RedisBoard
from gateway.broker.redis.store import CONFIRMATIONS, FENCED, REUSED, Store, events_of, parse
from gateway.config.model import config as model
from gateway.config.model.redis_url import RedisUrl
from gateway.core.backoff import Backoff
from gateway.core.errors import Fenced, KeyReused, StartupError, Unavailable
from gateway.core.event import Appended, Cursor, Draft, EventId, Fence
from gateway.net.redis_target import Target
from gateway.net.tls_errors import in_plain_words
from gateway.observability.background import UNCOUNTED, Background

log = structlog.get_logger("gateway.broker")

WAITING = 10_000
"""Appends that may wait for the script before more are refused."""

GROUP_DRAFTS = 1000
"""Drafts after which one call of the script is closed; a batch is never divided."""

GROUP_BYTES = 1024 * 1024
"""Payload bytes after which one call of the script is closed."""

START_SECONDS = 5.0
"""How long a start waits for Redis before it goes on without; until then no stream is opened."""

_ZERO = EventId(0, 0)


class Cut(Exception):
    """The follower's connection cannot be trusted any more."""


@dataclass(slots=True)
class _Append:
    batch: Batch
    answer: asyncio.Future[Appended]


class RedisBroker(Broker):
    """See the module's docstring, and `gateway.broker.base` for the contract.

    ``timeout`` (seconds) bounds every call, and is how long a follower may hear nothing.
    """

    type = "redis"

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        limits: model.Pool,
        timeout: float,
        clock: Callable[[], int],
        background: Background = UNCOUNTED,
    ) -> None:
        self._target = Target(RedisUrl.parse(url))
        self._store = Store(prefix, secrets.token_hex(8), is_sharded=self._target.kind == "cluster")
        self.board = RedisBoard(self._call, self._store.base)
        self._limits = limits
        self._timeout = timeout
        self._clock = clock
        self._head = self._answered = _ZERO
        self._background = background
        self._delivery = Delivery(background)
        self._pool: Pool | None = None
        self._client: Redis | None = None
        self._waiting: deque[_Append] = deque()
        self._wake = asyncio.Event()
        self._suspect = asyncio.Event()
        self._settled = asyncio.Event()  # connected for the first time, or known to be hopeless
        self._fatal: str | None = None
        self._is_closed = False
        self._stored: tuple[str, EventId] | None = None  # the last event that should be in a stream
        self._is_demoted = False
        self._canary = 0
        self._canary_back = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return self._client is not None

    def connections(self) -> tuple[int, int]:
        """Return how many connections of the pool serve a call just now, and how many are open."""
        pool = self._pool
        return (pool.in_use, pool.size) if pool is not None else (0, 0)

    async def start(self) -> None:
        self._tasks = [
            self._background.start("redis_follower", self._run, is_vital=True),
            self._background.start("redis_writer", self._write, is_vital=True),
        ]
        try:
            await asyncio.wait_for(self._settled.wait(), START_SECONDS)
        except TimeoutError:
            log.warning("starting_without_broker", note="streams are opened once Redis answers")
        if self._fatal is not None:
            raise StartupError(f"the log (broker.url) cannot be used: {self._fatal}")

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._delivery.stop()
        _refuse(self._waiting, "the gateway is shutting down")
        self._waiting.clear()

    def follow(self, deliver: Deliver, lost: Lost) -> None:
        self._delivery.follow(deliver, lost)

    async def append(
        self, drafts: Sequence[Draft], cursor: Cursor | None = None, fence: Fence | None = None
    ) -> Appended:
        if self._client is None or self._is_closed:
            raise Unavailable("Redis is not reached just now")
        if len(self._waiting) >= WAITING:
            raise Unavailable(f"{WAITING} appends wait for the log already", retry_after=2)
        request = _Append(Batch(drafts, cursor, fence), asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake.set()
        return await request.answer

    async def read(self, after: Mapping[str, EventId], until: EventId, limit: int) -> Mapping[str, Page]:
        async with self._call() as client:
            return await self._store.read(client, after, until, limit, self._known, self._clock())

    async def recent(self, spans: Sequence[Span]) -> Sequence[Recent]:
        async with self._call() as client:
            return await self._store.recent(client, spans, self._clock())

    async def latest(self) -> EventId:
        async with self._call() as client:
            return max(self._known, await self._store.head(client))

    async def cursor(self, source: str) -> str | None:
        async with self._call() as client:
            return await self._store.cursor(client, source)

    async def parts(self, source: str) -> list[str]:
        async with self._call() as client:
            return await self._store.parts(client, source)

    async def lease(self, name: str, seconds: float) -> Fence | None:
        async with self._call() as client:
            return await self._store.lease(client, name, round(seconds * 1000))

    async def release(self, fence: Fence) -> None:
        async with self._call() as client:
            await self._store.lease(client, fence.name, 0)

    @property
    def _known(self) -> EventId:
        """The last id that this node has seen, or told somebody."""
        return max(self._head, self._answered)

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[Redis]:
        """Give the client for one exchange, with a deadline. Raises Unavailable for whatever goes wrong."""
        if self._client is None:
            raise Unavailable("Redis is not reached just now")
        try:
            async with asyncio.timeout(self._timeout):
                yield self._client
        except TimeoutError:
            self._suspect.set()
            raise Unavailable(f"Redis gave no answer within {self._timeout:g} s") from None
        except (RedisError, OSError) as error:
            self._is_demoted = self._is_demoted or isinstance(error, (ReadOnlyError, MovedError))
            self._suspect.set()
            raise Unavailable(f"Redis: {error or type(error).__name__}") from None

    # Writing: one task, one call of the script at a time.

    async def _write(self) -> None:
        while True:
            if not self._waiting:
                await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                requests = self._take()
                try:
                    async with self._call() as client:
                        batches = [request.batch for request in requests]
                        _, answers = await self._store.append(client, batches, self._known, self._clock())
                    for request, answer in zip(requests, answers, strict=True):
                        self._settle(request, answer)
                except Unavailable as error:
                    _refuse(requests, error.message)
                except asyncio.CancelledError:
                    _refuse(requests, "the gateway is shutting down")
                    raise
                except Exception as error:  # one append that cannot be written must not end all writing
                    self._background.failed("redis_writer", error)
                    _refuse(requests, "the append failed; the log says why")

    def _take(self) -> list[_Append]:
        requests: list[_Append] = []
        drafts = size = 0
        while self._waiting and (not requests or (drafts < GROUP_DRAFTS and size < GROUP_BYTES)):
            request = self._waiting.popleft()
            requests.append(request)
            drafts += len(request.batch.drafts)
            size += sum(len(draft.payload) for draft in request.batch.drafts)
        return requests

    def _settle(self, request: _Append, answer: bytes) -> None:
        if answer in (FENCED, REUSED):
            if not request.answer.done():
                fenced = Fenced("the lease is another node's by now")
                request.answer.set_exception(fenced if answer == FENCED else KeyReused())
            return
        duplicates, *found = answer.split()
        ids = Appended(map(parse, found), int(duplicates))
        self._answered = max((self._answered, *ids))
        if not request.answer.done():
            request.answer.set_result(ids)

    # Following.

    async def _run(self) -> None:
        """Keep a connection for ever: one line when it breaks and one whenever the cause changes."""
        backoff, told = Backoff(base=0.1, cap=3.0), ""
        while True:
            try:
                server = await self._locate()
                async with self._connected(server) as (client, pubsub):
                    if told:
                        log.info("broker_up")
                    told = ""
                    backoff.reset()
                    await self._follow(client, pubsub, server)
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                text = self._fatal = str(error)
                self._settled.set()
            except TimeoutError:
                text = f"Redis gave no answer within {self._timeout:g} s"
            except (RedisError, OSError, ValueError, Cut) as error:
                text = in_plain_words(str(error)) or type(error).__name__
            except Exception as error:
                self._background.failed("redis_follower", error)
                text = type(error).__name__
            self.trouble = text
            if text != told:
                log.error("broker_down", error=text, retrying=True)
                told = text
            await asyncio.sleep(backoff.next())

    async def _locate(self) -> Mapping[str, Any]:
        async with asyncio.timeout(self._timeout + self._limits.connect):
            return await self._target.locate(self._store.log_key, self._limits.connect)

    @asynccontextmanager
    async def _connected(self, server: Mapping[str, Any]) -> AsyncIterator[tuple[Redis, PubSub]]:
        """Connect, subscribe, and only then look where the log is: nothing falls between."""
        options = {
            **server,
            # Every call has its own deadline; redis-py would retry its own silently.
            "socket_timeout": None,
            "socket_connect_timeout": self._limits.connect,
            "retry": Retry(NoBackoff(), 0),
            "client_name": "sse-gateway",
            "timeout": self._limits.wait,
        }
        self._pool = pool(max_connections=self._limits.max_connections, **options)
        client = Redis(connection_pool=self._pool)
        # The follower and its watch have connections of their own: a busy pool is no reason to be cut off.
        follower = Redis(connection_pool=pool(max_connections=2, **options))
        pubsub = follower.pubsub()
        try:
            async with asyncio.timeout(self._timeout + self._limits.connect):
                await self._store.subscribe(pubsub)
                await self._sync(follower)
            self._client = client
            self._is_demoted = False
            self._fatal = None
            self._settled.set()
            yield follower, pubsub
        finally:
            self._client = None
            closing = asyncio.wait_for(close(pubsub, follower, client), self._timeout)
            await asyncio.gather(closing, return_exceptions=True)

    async def _sync(self, client: Redis) -> None:
        """See to it that the log is there, and skip to its end where this node has not followed it."""
        head, _ = await self._store.append(client, (), self._known, self._clock())
        if self._stored is not None and not await self._store.check_back(client, *self._stored):
            log.error("log_lost_events", known=str(self._known), note="Redis forgot what it had acknowledged")
        if head > self._head:
            if self._head != _ZERO:
                log.warning("follower_catches_up", after=str(self._head), until=str(head))
            self._head = head
            self._delivery.skip(head)

    async def _follow(self, client: Redis, pubsub: PubSub, server: Mapping[str, Any]) -> None:
        work = [
            asyncio.create_task(self._listen(pubsub), name="redis listener"),
            asyncio.create_task(self._watch(client, server), name="redis watch"),
        ]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _listen(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=3600)
            if message is None:
                continue
            if message["type"] in CONFIRMATIONS:
                raise Cut("the connection was replaced")
            if message["channel"] == self._store.live:
                self._take_in(message["data"])
            elif int(message["data"]) == self._canary:
                self._canary_back.set()

    def _take_in(self, message: bytes) -> None:
        """Deliver what a live message brings; skip what is here already, and over what never came."""
        before, events = events_of(message)
        if before > self._head:
            log.warning("hole_in_live_messages", after=str(self._head), until=str(before))
            self._head = before
            self._delivery.skip(before)
        events = [event for event in events if event.id > self._head]
        if events:
            self._head = events[-1].id
            self._stored = next(
                ((each.channel, each.id) for each in reversed(events) if each.kept), self._stored
            )
            self._delivery.deliver(events)

    async def _watch(self, client: Redis, server: Mapping[str, Any]) -> None:
        """Prove again and again that messages arrive and that the log is where it was. Raises Cut."""
        pool = self._pool
        assert pool is not None
        while True:
            if self._is_demoted:
                raise Cut("the server is no master any more")
            self._suspect.clear()
            self._canary += 1
            self._canary_back.clear()
            async with asyncio.timeout(self._timeout):
                head, _ = await self._store.append(client, (), self._known, self._clock())
                await self._store.send_canary(client, self._canary)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._canary_back.wait()
            if not self._canary_back.is_set():
                raise Cut(f"Redis delivered no message within {self._timeout:g} s")
            if self._head < head:
                raise Cut(f"the log is at {head}, and the live messages at {self._head}")
            if self._target.kind == "sentinel" and await self._locate() != server:
                raise Cut("another server is the master now")
            await pool.close_idle(self._limits.idle)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout / 2):
                    await self._suspect.wait()


def _refuse(requests: Iterable[_Append], reason: str) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(Unavailable(reason))
