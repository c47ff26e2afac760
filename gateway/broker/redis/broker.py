"""``redis://`` and its kin: one log for any number of hosts.

How it works. Every append is one call of ``append.lua``, which gives the ids, stores the events in a
stream per channel and publishes them; what waits meanwhile goes into the next call. Every node follows
one pub/sub channel with the whole log. Each message names the id before it, so a hole is seen at once:
then the streams read what they need (`BrokerConfig`'s ``lost``), each channel from its own stream, where
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

from gateway.broker.base import AppendBatch, Broker, HistoryPage, HistorySpan, OnEvents, OnGap, SpanIds
from gateway.broker.delivery import Delivery
from gateway.broker.redis.event_log import (
    FENCED,
    KEY_REUSED,
    SUBSCRIBE_CONFIRMATIONS,
    RedisEventLog,
    decode_live_message,
    parse_event_id,
)
from gateway.broker.redis.pool import RedisPool, close_clients, create_pool
from gateway.broker.redis.shared_store import RedisSharedStore
from gateway.config.model import config as model
from gateway.config.model.redis_url import RedisUrl
from gateway.core.backoff import Backoff
from gateway.core.errors import IdempotencyKeyReused, StaleFencingToken, StartupError, Unavailable
from gateway.core.event import AppendedIds, Draft, EventId, FencingToken, SourceOffset
from gateway.net.redis_locator import RedisLocator
from gateway.net.tls_errors import humanize_tls_error
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.broker")

MAX_WAITING_APPENDS = 10_000
"""Appends that may wait for the script before more are refused."""

GROUP_COMMIT_DRAFTS = 1000
"""Drafts after which one call of the script is closed; a batch is never divided."""

GROUP_COMMIT_BYTES = 1024 * 1024
"""Payload bytes after which one call of the script is closed."""

START_TIMEOUT_SECONDS = 5.0
"""How long a start waits for Redis before it goes on without; until then no stream is opened."""

_ZERO = EventId(0, 0)


class FollowerConnectionLost(Exception):
    """The follower's connection cannot be trusted any more."""


@dataclass(slots=True)
class _PendingAppend:
    batch: AppendBatch
    result: asyncio.Future[AppendedIds]


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
        pool_limits: model.PoolConfig,
        timeout: float,
        clock: Callable[[], int],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._target = RedisLocator(RedisUrl.parse(url))
        self._event_log = RedisEventLog(
            prefix, secrets.token_hex(8), is_sharded=self._target.kind == "cluster"
        )
        self.shared_store = RedisSharedStore(self._borrow_client, self._event_log.key_prefix)
        self._pool_limits = pool_limits
        self._timeout = timeout
        self._clock = clock
        self._head = self._last_appended = _ZERO
        self._background = background
        self._delivery = Delivery(background)
        self._pool: RedisPool | None = None
        self._client: Redis | None = None
        self._pending_appends: deque[_PendingAppend] = deque()
        self._append_queued = asyncio.Event()
        self._is_connection_suspect = asyncio.Event()
        self._first_attempt_done = asyncio.Event()  # connected for the first time, or known to be hopeless
        self._fatal_error: str | None = None
        self._is_closed = False
        self._last_stored_event: tuple[str, EventId] | None = (
            None  # the last event that should be in a stream
        )
        self._is_demoted = False
        self._canary_number = 0
        self._canary_received = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return self._client is not None

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections of the pool serve a call just now, and how many are open."""
        pool = self._pool
        return (pool.in_use, pool.size) if pool is not None else (0, 0)

    async def start(self) -> None:
        self._tasks = [
            self._background.start_task("redis_follower", self._run_follower, is_vital=True),
            self._background.start_task("redis_writer", self._run_writer, is_vital=True),
        ]
        try:
            await asyncio.wait_for(self._first_attempt_done.wait(), START_TIMEOUT_SECONDS)
        except TimeoutError:
            log.warning("broker_not_reached_at_start", note="streams are opened once Redis answers")
        if self._fatal_error is not None:
            raise StartupError(f"the log (broker.url) cannot be used: {self._fatal_error}")

    async def close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._delivery.stop()
        _fail_appends(self._pending_appends, "the gateway is shutting down")
        self._pending_appends.clear()

    def follow(self, on_events: OnEvents, on_gap: OnGap) -> None:
        self._delivery.set_handlers(on_events, on_gap)

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        if self._client is None or self._is_closed:
            raise Unavailable("Redis is not reached just now")
        if len(self._pending_appends) >= MAX_WAITING_APPENDS:
            raise Unavailable(f"{MAX_WAITING_APPENDS} appends wait for the log already", retry_after=2)
        request = _PendingAppend(
            AppendBatch(drafts, offset, fence), asyncio.get_running_loop().create_future()
        )
        self._pending_appends.append(request)
        self._append_queued.set()
        return await request.result

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        async with self._borrow_client() as client:
            return await self._event_log.read(client, after, until, limit, self._last_known_id, self._clock())

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        async with self._borrow_client() as client:
            return await self._event_log.read_recent_ids(client, spans, self._clock())

    async def read_log_head(self) -> EventId:
        async with self._borrow_client() as client:
            return max(self._last_known_id, await self._event_log.read_head(client))

    async def read_offset(self, source: str) -> str | None:
        async with self._borrow_client() as client:
            return await self._event_log.read_offset(client, source)

    async def list_partitions(self, source: str) -> list[str]:
        async with self._borrow_client() as client:
            return await self._event_log.list_partitions(client, source)

    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        async with self._borrow_client() as client:
            return await self._event_log.set_lease(client, name, round(seconds * 1000))

    async def release_lease(self, fence: FencingToken) -> None:
        async with self._borrow_client() as client:
            await self._event_log.set_lease(client, fence.lease, 0)

    @property
    def _last_known_id(self) -> EventId:
        """The last id that this node has seen, or told somebody."""
        return max(self._head, self._last_appended)

    @asynccontextmanager
    async def _borrow_client(self) -> AsyncIterator[Redis]:
        """Give the client for one exchange, with a deadline. Raises Unavailable for whatever goes wrong."""
        if self._client is None:
            raise Unavailable("Redis is not reached just now")
        try:
            async with asyncio.timeout(self._timeout):
                yield self._client
        except TimeoutError:
            self._is_connection_suspect.set()
            raise Unavailable(f"Redis gave no answer within {self._timeout:g} s") from None
        except (RedisError, OSError) as error:
            self._is_demoted = self._is_demoted or isinstance(error, (ReadOnlyError, MovedError))
            self._is_connection_suspect.set()
            raise Unavailable(f"Redis: {error or type(error).__name__}") from None

    # Writing: one task, one call of the script at a time.

    async def _run_writer(self) -> None:
        while True:
            if not self._pending_appends:
                await self._append_queued.wait()
            self._append_queued.clear()
            while self._pending_appends:
                requests = self._take_group()
                try:
                    async with self._borrow_client() as client:
                        batches = [request.batch for request in requests]
                        _, answers = await self._event_log.append(
                            client, batches, self._last_known_id, self._clock()
                        )
                    for request, answer in zip(requests, answers, strict=True):
                        self._resolve_append(request, answer)
                except Unavailable as error:
                    _fail_appends(requests, error.message)
                except asyncio.CancelledError:
                    _fail_appends(requests, "the gateway is shutting down")
                    raise
                except Exception as error:  # one append that cannot be written must not end all writing
                    self._background.record_failure("redis_writer", error)
                    _fail_appends(requests, "the append failed; the log says why")

    def _take_group(self) -> list[_PendingAppend]:
        requests: list[_PendingAppend] = []
        drafts = size = 0
        while self._pending_appends and (
            not requests or (drafts < GROUP_COMMIT_DRAFTS and size < GROUP_COMMIT_BYTES)
        ):
            request = self._pending_appends.popleft()
            requests.append(request)
            drafts += len(request.batch.drafts)
            size += sum(len(draft.payload) for draft in request.batch.drafts)
        return requests

    def _resolve_append(self, request: _PendingAppend, answer: bytes) -> None:
        if answer in (FENCED, KEY_REUSED):
            if not request.result.done():
                fenced = StaleFencingToken("the lease is another node's by now")
                request.result.set_exception(fenced if answer == FENCED else IdempotencyKeyReused())
            return
        duplicates, *found = answer.split()
        ids = AppendedIds(map(parse_event_id, found), int(duplicates))
        self._last_appended = max((self._last_appended, *ids))
        if not request.result.done():
            request.result.set_result(ids)

    # Following.

    async def _run_follower(self) -> None:
        """Keep a connection for ever: one line when it breaks and one whenever the cause changes."""
        backoff, told = Backoff(base_seconds=0.1, cap_seconds=3.0), ""
        while True:
            try:
                server = await self._locate_server()
                async with self._connect(server) as (client, pubsub):
                    if told:
                        log.info("broker_up")
                    told = ""
                    backoff.reset()
                    await self._follow_until_error(client, pubsub, server)
            except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
                text = self._fatal_error = str(error)
                self._first_attempt_done.set()
            except TimeoutError:
                text = f"Redis gave no answer within {self._timeout:g} s"
            except (RedisError, OSError, ValueError, FollowerConnectionLost) as error:
                text = humanize_tls_error(str(error)) or type(error).__name__
            except Exception as error:
                self._background.record_failure("redis_follower", error)
                text = type(error).__name__
            self.last_error = text
            if text != told:
                log.error("broker_down", error=text, retrying=True)
                told = text
            await asyncio.sleep(backoff.next_delay())

    async def _locate_server(self) -> Mapping[str, Any]:
        async with asyncio.timeout(self._timeout + self._pool_limits.connect):
            return await self._target.locate(self._event_log.log_key, self._pool_limits.connect)

    @asynccontextmanager
    async def _connect(self, server: Mapping[str, Any]) -> AsyncIterator[tuple[Redis, PubSub]]:
        """Connect, subscribe, and only then look where the log is: nothing falls between."""
        options = {
            **server,
            # Every call has its own deadline; redis-py would retry its own silently.
            "socket_timeout": None,
            "socket_connect_timeout": self._pool_limits.connect,
            "retry": Retry(NoBackoff(), 0),
            "client_name": "sse-gateway",
            "timeout": self._pool_limits.wait,
        }
        self._pool = create_pool(max_connections=self._pool_limits.max_connections, **options)
        client = Redis(connection_pool=self._pool)
        # The follower and its watch have connections of their own: a busy pool is no reason to be cut off.
        follower = Redis(connection_pool=create_pool(max_connections=2, **options))
        pubsub = follower.pubsub()
        try:
            async with asyncio.timeout(self._timeout + self._pool_limits.connect):
                await self._event_log.subscribe(pubsub)
                await self._sync_head(follower)
            self._client = client
            self._is_demoted = False
            self._fatal_error = None
            self._first_attempt_done.set()
            yield follower, pubsub
        finally:
            self._client = None
            closing = asyncio.wait_for(close_clients(pubsub, follower, client), self._timeout)
            await asyncio.gather(closing, return_exceptions=True)

    async def _sync_head(self, client: Redis) -> None:
        """See to it that the log is there, and skip to its end where this node has not followed it."""
        head, _ = await self._event_log.append(client, (), self._last_known_id, self._clock())
        if self._last_stored_event is not None and not await self._event_log.verify_last_event(
            client, *self._last_stored_event
        ):
            log.error(
                "event_log_lost_events",
                known=str(self._last_known_id),
                note="Redis forgot what it had acknowledged",
            )
        if head > self._head:
            if self._head != _ZERO:
                log.warning("follower_skipped_ahead", after=str(self._head), until=str(head))
            self._head = head
            self._delivery.report_gap(head)

    async def _follow_until_error(self, client: Redis, pubsub: PubSub, server: Mapping[str, Any]) -> None:
        work = [
            asyncio.create_task(self._listen(pubsub), name="redis listener"),
            asyncio.create_task(self._monitor_connection(client, server), name="redis watch"),
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
            if message["type"] in SUBSCRIBE_CONFIRMATIONS:
                raise FollowerConnectionLost("the connection was replaced")
            if message["channel"] == self._event_log.live_channel:
                self._handle_live_message(message["data"])
            elif int(message["data"]) == self._canary_number:
                self._canary_received.set()

    def _handle_live_message(self, message: bytes) -> None:
        """Deliver what a live message brings; skip what is here already, and over what never came."""
        before, events = decode_live_message(message)
        if before > self._head:
            log.warning("live_messages_missed", after=str(self._head), until=str(before))
            self._head = before
            self._delivery.report_gap(before)
        events = [event for event in events if event.id > self._head]
        if events:
            self._head = events[-1].id
            self._last_stored_event = next(
                ((each.channel, each.id) for each in reversed(events) if each.is_retained),
                self._last_stored_event,
            )
            self._delivery.deliver(events)

    async def _monitor_connection(self, client: Redis, server: Mapping[str, Any]) -> None:
        """Prove again and again that messages arrive and that the log is where it was. Raises Cut."""
        pool = self._pool
        assert pool is not None
        while True:
            if self._is_demoted:
                raise FollowerConnectionLost("the server is no master any more")
            self._is_connection_suspect.clear()
            self._canary_number += 1
            self._canary_received.clear()
            async with asyncio.timeout(self._timeout):
                head, _ = await self._event_log.append(client, (), self._last_known_id, self._clock())
                await self._event_log.publish_canary(client, self._canary_number)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await self._canary_received.wait()
            if not self._canary_received.is_set():
                raise FollowerConnectionLost(f"Redis delivered no message within {self._timeout:g} s")
            if self._head < head:
                raise FollowerConnectionLost(f"the log is at {head}, and the live messages at {self._head}")
            if self._target.kind == "sentinel" and await self._locate_server() != server:
                raise FollowerConnectionLost("another server is the master now")
            await pool.close_idle(self._pool_limits.idle)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timeout / 2):
                    await self._is_connection_suspect.wait()


def _fail_appends(requests: Iterable[_PendingAppend], reason: str) -> None:
    for request in requests:
        if not request.result.done():
            request.result.set_exception(Unavailable(reason))
