"""The pool of connections to Redis, with redis-py's private lists and without them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from gateway.broker.redis import pool as redis_pool
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.redis.pool import PublicApiPool, RedisPool, create_pool
from gateway.config.model import config as model
from gateway.core.clock import unix_ms
from gateway.core.event import Retention
from gateway.observability.log_throttle import LogThrottle
from tests.broker.contract import ZERO, draft, read
from tests.support.gateway import eventually
from tests.support.redis import RedisServer, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a redis-py whose pools lack the private lists."""
    monkeypatch.setattr(redis_pool, "_log_throttle", LogThrottle())
    monkeypatch.setattr(RedisPool, "size", property(lambda self: len(self._connections_of_another_name)))


@asynccontextmanager
async def running(server: RedisServer) -> AsyncIterator[RedisBroker]:
    limits = model.PoolConfig.model_validate({"max_connections": 3, "idle": "1ms", "wait": "1m"})
    url = f"redis://127.0.0.1:{server.port}/0"
    broker = RedisBroker(url, prefix="pool", pool_limits=limits, timeout=60.0, clock=unix_ms)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


def test_this_redis_py_has_the_private_lists() -> None:
    """With a redis-py that lacks the lists, idle connections would stay open."""
    with capture_logs() as logs:
        assert type(create_pool(max_connections=1)) is RedisPool
    assert not logs


@pytest.mark.usefixtures("changed")
async def test_without_redis_pys_own_lists_the_log_goes_on(server: RedisServer) -> None:
    """A security release of redis-py that renames private lists would stop the log."""
    with capture_logs() as logs:
        async with running(server) as broker:
            assert isinstance(broker._connection._pool, PublicApiPool)
            ids = [
                id
                for some in await asyncio.gather(
                    *(broker.append([draft("c", retention=Retention(100))]) for _ in range(10))
                )
                for id in some
            ]
            assert (await read(broker, "c", ZERO))[0] == sorted(ids)
            await eventually(lambda: broker.count_connections()[0] == 0)
            assert 1 <= broker.count_connections()[1] <= 3
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["redis_py_changed"]
