"""A bounded pool of connections to one Redis server that lets go of those it does not need."""

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
    """redis-py's blocking pool; it never closes a connection by itself, so `close_idle` does.

    It reaches into the two lists that redis-py keeps; ``tests/broker/test_redis_pool.py`` pins them. Make it
    by `pool`, which does without them where a newer redis-py has none.
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
        """Take a connection back."""
        self._released_at[connection] = time.monotonic()
        await super().release(connection)

    async def close_idle(self, seconds: float) -> None:
        """Close what nobody used for so long. Cancelling is safe."""
        before = time.monotonic() - seconds
        idle = [each for each in self._available_connections if self._released_at.get(each, 0.0) < before]
        # All at once from the list: what is left in it may be taken while one of these is closed.
        self._available_connections[:] = [each for each in self._available_connections if each not in idle]
        for connection in idle:
            await connection.disconnect()


class PublicApiPool(RedisPool):
    """The same by documented means alone: connections stay open until the pool is closed."""

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
        """Take a connection."""
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
    """Return a pool."""
    made = RedisPool(**options)
    try:
        if made.size == 0 and not made._available_connections[:]:
            return made
        why = "a new pool has connections"
    except (AttributeError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
    if _log_throttle.should_log("pool") is not None:
        log.warning(
            "redis_py_changed",
            version=redis.__version__,
            error=why,
            note="idle connections stay open (broker.pool.idle)",
        )
    return PublicApiPool(**options)


async def close_clients(pubsub: PubSub, *clients: Redis) -> None:
    """Close a subscription and clients with their pools; writes to the server, so give it a deadline."""
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    for client in clients:
        await client.aclose(close_connection_pool=True)
