"""A bounded pool of connections to one Redis server that lets go of those it does not need."""

import time
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection


class Pool(BlockingConnectionPool):
    """redis-py's blocking pool; it never closes a connection by itself, so `close_idle` does.

    It reaches into the two lists that redis-py keeps; ``tests/broker/test_redis.py`` pins them.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._released: WeakKeyDictionary[AbstractConnection, float] = WeakKeyDictionary()

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
        self._released[connection] = time.monotonic()
        await super().release(connection)

    async def close_idle(self, seconds: float) -> None:
        """Close what nobody used for so long. Cancelling is safe."""
        before = time.monotonic() - seconds
        idle = [each for each in self._available_connections if self._released.get(each, 0.0) < before]
        # All at once from the list: what is left in it may be taken while one of these is closed.
        self._available_connections[:] = [each for each in self._available_connections if each not in idle]
        for connection in idle:
            await connection.disconnect()


async def close(pubsub: PubSub, *clients: Redis) -> None:
    """Close a subscription and clients with their pools; writes to the server, so give it a deadline."""
    await pubsub.aclose()  # type: ignore[no-untyped-call]
    for client in clients:
        await client.aclose(close_connection_pool=True)
