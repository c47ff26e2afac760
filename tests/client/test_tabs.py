"""Tabs that share a stream, where the one that leads does harm: it hangs, or is shown again after a long sleep."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page

from tests.support.browser import Browser, browser_running
from tests.support.gateway import Gateway, eventually, gateway_running

OPEN = """
async ([module, url]) => {
  const { connect } = await import(module);
  window.got = [];
  window.stream = connect(url, { channels: ["orders"], share: true, minDelay: 50, maxDelay: 200 });
  stream.on("*", (event) => got.push(event.type === "stream.gap" ? event.reason : event.payload));
  await new Promise((open) => stream.on("state", ({ state }) => state === "open" && open()));
}
"""


@asynccontextmanager
async def shared() -> AsyncIterator[tuple[Gateway, Browser]]:
    async with browser_running() as browser:
        over = {"cors": {"origins": [browser.origin()]}, "timeouts": {"retry": "50ms"}}
        async with gateway_running(over) as gateway:
            yield gateway, browser


async def opened(gateway: Gateway, browser: Browser) -> Page:
    page = await browser.page()
    await page.evaluate(OPEN, [f"{gateway.url}/client.js", gateway.url])
    return page


@pytest.mark.timeout(60)
async def test_a_tab_that_hangs_is_robbed_of_the_lead() -> None:
    """Its script does not end: a tab that opens gets no answer, and leads; nobody loses or repeats an event."""
    async with shared() as (gateway, browser):
        first = await opened(gateway, browser)
        second = await opened(gateway, browser)
        await gateway.post("orders", "1")
        for page in (first, second):
            await eventually(lambda page=page: page.evaluate("got.length === 1"))
        await first.evaluate(
            "void setTimeout(() => { const until = Date.now() + 12_000; while (Date.now() < until); })"
        )
        third = await opened(gateway, browser)
        await gateway.post("orders", "2")
        await eventually(lambda: third.evaluate("got.length === 1"))
        await eventually(lambda: second.evaluate("got.length === 2"))
        await eventually(
            lambda: len(gateway.daemon.streams.open) == 1, 20
        )  # the first one is back, and lets go
        await gateway.post("orders", "3")
        for page, got in ((first, [1, 2, 3]), (second, [1, 2, 3]), (third, [2, 3])):
            await eventually(lambda page=page, got=got: has(page, got), 20)
            assert await page.evaluate("stream.state") == "open"


async def has(page: Page, got: list[int]) -> bool:
    return list(await page.evaluate("got")) == got


async def test_tabs_of_two_subscriptions_do_not_mix() -> None:
    """Other channels, or another text in share, are another stream."""
    async with shared() as (gateway, browser):
        first = await opened(gateway, browser)
        second = await browser.page()
        other = OPEN.replace('["orders"]', '["stock"]')
        await second.evaluate(other, [f"{gateway.url}/client.js", gateway.url])
        third = await browser.page()
        other = OPEN.replace("share: true", 'share: "another user"')
        await third.evaluate(other, [f"{gateway.url}/client.js", gateway.url])
        assert len(gateway.daemon.streams.open) == 3
        await gateway.post("orders", "1")
        await gateway.post("stock", "2")
        for page, got in ((first, [1]), (second, [2]), (third, [1])):
            await eventually(lambda page=page, got=got: has(page, got))
