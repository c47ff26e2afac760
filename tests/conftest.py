"""Fixtures for all tests. Everything runs on uvloop, like the daemon."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import uvloop

from tests.support.gateway import Gateway, gateway_running
from tests.support.redis import RedisServer, redis_server


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


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
