"""A bounded pool of connections to one Redis server that closes those that are idle."""

import time
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import redis
import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection

from gateway.observability.log_throttle import LogThrottle

log = structlog.get_logger("gateway.broker")
_log_throttle = LogThrottle()


class RedisPool(BlockingConnectionPool):
    """redis-py's blocking pool, which never closes an idle connection by itself: `close_idle` does.

    It uses two private lists of redis-py, which ``tests/broker/test_redis_pool.py`` pins. Create it with
    `create_pool`, which falls back to `PublicApiPool` where a newer redis-py lacks them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._released_at: WeakKeyDictionary[AbstractConnection, float] = WeakKeyDictionary()

    @property
    def in_use(self) -> int:
        """How many connections serve a call just now."""
        return len(self._in_use_connections)

    @property
    def size(self) -> int:
        """How many connections are open."""
        return len(self._in_use_connections) + len(self._available_connections)

    async def release(self, connection: AbstractConnection) -> None:
        self._released_at[connection] = time.monotonic()
        await super().release(connection)

    async def close_idle(self, seconds: float) -> None:
        """Close the connections that were idle for so long. Cancelling is safe."""
        before = time.monotonic() - seconds
        idle = [each for each in self._available_connections if self._released_at.get(each, 0.0) < before]
        # Remove all of them first: a connection in the list may be borrowed while another one is closed.
        self._available_connections[:] = [each for each in self._available_connections if each not in idle]
        for connection in idle:
            await connection.disconnect()


class PublicApiPool(RedisPool):
    """The same with redis-py's public API alone: connections stay open until the pool is closed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._borrowed: WeakSet[AbstractConnection] = WeakSet()

    @property
    def in_use(self) -> int:
        return len(self._borrowed)

    @property
    def size(self) -> int:
        return len(self._borrowed | set(self._released_at))

    async def get_connection(self, *arguments: Any, **options: Any) -> AbstractConnection:
        take: Any = super().get_connection
        connection: AbstractConnection = await take(*arguments, **options)
        self._borrowed.add(connection)
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        self._borrowed.discard(connection)
        await super().release(connection)

    async def close_idle(self, seconds: float) -> None:
        return


def create_pool(**options: Any) -> RedisPool:
    """Return a `RedisPool`, or a `PublicApiPool` with a warning where redis-py's private lists changed."""
    pool = RedisPool(**options)
    try:
        if pool.size == 0 and not pool._available_connections[:]:
            return pool
        reason = "a new pool has connections"
    except (AttributeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    if _log_throttle.should_log("pool") is not None:
        note = "idle connections stay open (broker.pool.idle)"
        log.warning("redis_py_changed", version=redis.__version__, error=reason, note=note)
    return PublicApiPool(**options)


async def close_clients(pubsub: PubSub, *clients: Redis) -> None:
    """Close a subscription and clients with their pools; writes to the server, so give it a deadline."""
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    for client in clients:
        await client.aclose(close_connection_pool=True)
