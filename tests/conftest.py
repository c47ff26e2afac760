"""Fixtures for all tests. Everything runs on uvloop, like the daemon."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
import uvloop
from hypothesis import settings

from tests.support import needs
from tests.support.gateway import Gateway, gateway_running
from tests.support.idle import IdleLoop
from tests.support.redis import RedisServer, redis_server

# Time says something about the machine, not about the code.
settings.register_profile("gateway", deadline=None)
settings.load_profile("gateway")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, object]:
    """Run on uvloop; on asyncio's own loop too if marked ``both_loops``, or on `IdleLoop` if ``idle_clock``."""
    if item.get_closest_marker("idle_clock"):
        return {"idle": IdleLoop}
    factories: dict[str, object] = {"uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        factories["asyncio"] = asyncio.new_event_loop
    return factories


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep the tests of `make test` to Python alone."""
    needs.set_tier(has_programs=item.get_closest_marker("extended") is not None)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Let no test's log end in the file of another one."""
    yield
    structlog.reset_defaults()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    """A gateway with the open webhook ``hooks`` and the public channels orders, stock and news."""
    async with gateway_running() as running:
        yield running


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis server of the test's own."""
    with redis_server() as server:
        yield server
