"""``redis://``, ``rediss://``, Sentinel and cluster: one log for any number of hosts.

Each append is a call of ``append.lua``, which assigns the ids, stores the events in a stream per channel and
publishes them. Appends that arrive during a call share the next one (`Batcher`). Every node follows one
pub/sub channel with all events (`RedisFollower`); history is read from the streams, where every event names
the one before it in its channel, so that a missing event shows.

Redis can lose data: FLUSHALL, eviction, or a failover without acknowledged writes. Nodes pass the last
id that they know of with each append, and look for their last event after they reconnect. If the log
lacks it, everything older is reported as incomplete.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog

from gateway.broker.base import AppendBatch, AppendResult, Broker, HistoryPage, HistorySpan, SpanIds
from gateway.broker.batcher import Batcher
from gateway.broker.redis.connection import RedisConnection
from gateway.broker.redis.event_log import RedisEventLog
from gateway.broker.redis.follower import RedisFollower
from gateway.broker.redis.shared_store import RedisSharedStore
from gateway.config.model import config as model
from gateway.config.model.redis_url import RedisUrl
from gateway.core.errors import StartupError, Unavailable
from gateway.core.event import AppendedIds, Draft, EventId, FencingToken, SourceOffset
from gateway.net.redis_locator import RedisLocator
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.broker")

GROUP_COMMIT_DRAFTS = 1000
"""Drafts after which one call of the script is closed; an append is never divided."""

GROUP_COMMIT_BYTES = 1024 * 1024
"""Payload bytes after which one call of the script is closed."""

START_TIMEOUT_SECONDS = 5.0
"""How long a start waits for Redis before it goes on without; until Redis answers, no stream opens."""


class RedisBroker(Broker):
    """A `Broker` in Redis. ``timeout`` (seconds) bounds every call and the silence of the live messages."""

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
        super().__init__(background)
        locator = RedisLocator(RedisUrl.parse(url))
        self._event_log = RedisEventLog(
            prefix, secrets.token_hex(8), is_sharded=locator.kind == "cluster", clock=clock
        )
        self._connection = RedisConnection(locator, self._event_log.log_key, pool_limits, timeout)
        self._borrow_client = self._connection.borrow_client
        self.shared_store = RedisSharedStore(self._borrow_client, self._event_log.key_prefix)
        self._background = background
        self._follower = RedisFollower(self._connection, self._event_log, self._delivery, background)
        self._appends: Batcher[AppendBatch, AppendedIds] = Batcher(
            "appends",
            lambda batch: (len(batch.drafts), batch.payload_bytes()),
            batch_units=GROUP_COMMIT_DRAFTS,
            batch_bytes=GROUP_COMMIT_BYTES,
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def head(self) -> EventId:
        return self._follower.head

    @property
    def is_up(self) -> bool:
        return self._connection.is_up

    @property
    def last_error(self) -> str:
        return self._follower.last_error

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections of the pool are in use, and how many are open."""
        return self._connection.count_connections()

    async def start(self) -> None:
        background = self._background
        self._tasks = [
            background.start_task("redis_follower", self._follower.run, is_vital=True),
            background.start_task(
                "redis_writer",
                lambda: self._appends.run(self._write, partial(background.record_failure, "redis_writer")),
                is_vital=True,
            ),
        ]
        try:
            await asyncio.wait_for(self._follower.first_attempt_done.wait(), START_TIMEOUT_SECONDS)
        except TimeoutError:
            log.warning("broker_not_reached_at_start", note="streams open once Redis answers")
        if self._follower.fatal_error is not None:
            raise StartupError(f"the log (broker.url) cannot be used: {self._follower.fatal_error}")

    async def close(self) -> None:
        self._appends.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._delivery.stop()
        self._appends.reject_pending()

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        if not self.is_up:
            raise Unavailable("Redis is not reached just now")
        return await self._appends.submit(AppendBatch(drafts, offset, fence))

    async def _write(self, batches: Sequence[AppendBatch]) -> Sequence[AppendResult]:
        async with self._borrow_client() as client:
            return (await self._event_log.append(client, batches))[1]

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        async with self._borrow_client() as client:
            return await self._event_log.read(client, after, until, limit)

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        async with self._borrow_client() as client:
            return await self._event_log.read_recent_ids(client, spans)

    async def read_log_head(self) -> EventId:
        async with self._borrow_client() as client:
            return max(self._event_log.last_known_id, await self._event_log.read_head(client))

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
