"""Browsers that all tests of a worker share, one kind after the other; profiles, a site and a gateway of each test's own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio

from tests.support.browsers.chromium import chromium_running
from tests.support.browsers.firefox import firefox_running
from tests.support.browsers.site import Site, site_running
from tests.support.browsers.tab import Engine, Profile
from tests.support.browsers.webkit import webkit_running

Running = Callable[[], AbstractAsyncContextManager[Any]]

ENGINES: dict[str, Running] = {
    "chromium": chromium_running,
    "firefox": firefox_running,
    "webkit": webkit_running,
}


@pytest_asyncio.fixture(scope="package", loop_scope="session", params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """A browser that runs."""
    async with ENGINES[request.param]() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def profile(engine: Engine) -> AsyncIterator[Profile]:
    """A person who has opened nothing yet."""
    async with engine.profile() as made:
        yield made


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def site() -> AsyncIterator[Site]:
    """Where the pages are."""
    async with site_running() as running:
        yield running
