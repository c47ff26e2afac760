"""redis:// under the contract on one server, under Sentinel and on a cluster; and what is its own."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.broker.memory import unix_ms
from gateway.broker.redis import RedisBroker
from gateway.config.model import Pool
from tests.broker.contract import Clock, SharedContract
from tests.support.redis import cluster_url, redis_cluster, redis_sentinel, redis_server


@pytest.fixture(scope="module", params=["single", "sentinel", "cluster"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Servers that all tests of this file share; each test has a log of its own."""
    if request.param == "single":
        with redis_server() as server:
            yield server.url
    elif request.param == "sentinel":
        with redis_sentinel() as watched:
            yield watched.url
    else:
        with redis_cluster() as servers:
            yield cluster_url(servers)


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(url: str, prefix: str, clock: Clock | None = None, limits: Pool | None = None) -> RedisBroker:
    return RedisBroker(
        url, prefix=prefix, limits=limits or Pool.model_validate({}), timeout=1.0, clock=clock or unix_ms
    )


@pytest.fixture
async def broker(url: str, prefix: str, clock: Clock) -> AsyncIterator[RedisBroker]:
    broker = make(url, prefix, clock)
    await broker.start()
    yield broker
    await broker.close()


@pytest.fixture
async def other(url: str, prefix: str, broker: RedisBroker, clock: Clock) -> AsyncIterator[RedisBroker]:
    other = make(url, prefix, clock)
    await other.start()
    yield other
    await other.close()


class TestRedisBroker(SharedContract):
    """Every sentence of the contract, on every deployment."""
