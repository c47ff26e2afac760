"""The connections of one node to the log's Redis server: a pool for calls, and the follower's own."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import MovedError, ReadOnlyError, RedisError

from gateway.broker.redis.pool import RedisPool, close_clients, create_pool
from gateway.config.model import config as model
from gateway.core.errors import Unavailable
from gateway.net.redis_locator import RedisLocator, describe_redis_error, single_attempt_options


class RedisConnection:
    """Finds the server, opens connections to it and maps their errors.

    ``timeout_seconds`` bounds each call. The follower opens the connections with `open` and replaces them
    when they fail; until then, and in between, `borrow_client` raises Unavailable.
    """

    def __init__(
        self, locator: RedisLocator, log_key: str, pool_limits: model.PoolConfig, timeout_seconds: float
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self.connect_timeout_seconds = timeout_seconds + pool_limits.connect
        self.is_up = False  # whether `borrow_client` lends the client
        self.is_suspect = asyncio.Event()  # set when a call failed: the follower checks the connection
        self.is_demoted = False  # whether a call showed that the server is no longer the log's primary
        self._locator = locator
        self._log_key = log_key
        self._pool_limits = pool_limits
        self._pool: RedisPool | None = None
        self._client: Redis | None = None

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections of the pool are in use, and how many are open."""
        return (self._pool.in_use, self._pool.size) if self._pool is not None else (0, 0)

    async def locate(self) -> Mapping[str, Any]:
        """Return the options of a connection to the log's server. Raises RedisError or TimeoutError."""
        async with asyncio.timeout(self.connect_timeout_seconds):
            return await self._locator.locate(self._log_key, self._pool_limits.connect)

    async def is_primary(self, server: Mapping[str, Any]) -> bool:
        """Return whether Sentinel, if there is one, still names this server. Raises like `locate`."""
        return self._locator.kind != "sentinel" or await self.locate() == server

    @asynccontextmanager
    async def open(self, server: Mapping[str, Any]) -> AsyncIterator[tuple[Redis, PubSub]]:
        """Open the connections, yield the follower's client and subscription, and close all of them."""
        options = {
            **server,
            **single_attempt_options(self._pool_limits.connect),
            "client_name": "sse-gateway",
            "timeout": self._pool_limits.wait,
        }
        self._pool = create_pool(max_connections=self._pool_limits.max_connections, **options)
        self._client = client = Redis(connection_pool=self._pool)
        # The follower's connections are not of the pool: a busy pool must not look like a dead server.
        follower = Redis(connection_pool=create_pool(max_connections=2, **options))
        pubsub = follower.pubsub()
        try:
            yield follower, pubsub
        finally:
            self.is_up = False
            closing = asyncio.wait_for(close_clients(pubsub, follower, client), self.timeout_seconds)
            await asyncio.gather(closing, return_exceptions=True)

    def mark_up(self) -> None:
        """Lend the client until the connections are closed."""
        self.is_up, self.is_demoted = True, False

    async def close_idle(self) -> None:
        """Close connections of the pool that were idle for ``broker.pool.idle``. Cancelling is safe."""
        assert self._pool is not None
        await self._pool.close_idle(self._pool_limits.idle)

    @asynccontextmanager
    async def borrow_client(self) -> AsyncIterator[Redis]:
        """Yield the client for one exchange, which has `timeout_seconds`. Raises Unavailable if it fails."""
        if self._client is None or not self.is_up:
            raise Unavailable("Redis is not reached just now")
        try:
            async with asyncio.timeout(self.timeout_seconds):
                yield self._client
        except (RedisError, OSError) as error:  # a TimeoutError is an OSError
            self.is_demoted = self.is_demoted or isinstance(error, (ReadOnlyError, MovedError))
            self.is_suspect.set()
            raise Unavailable(describe_redis_error(error, self.timeout_seconds)) from None
