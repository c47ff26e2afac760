"""A page in Chromium whose service worker answers its requests, the stream's too."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Page

from tests.support.browser import CLOSED, LISTEN, Browser, browser_running
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

pytestmark = [pytest.mark.extended, pytest.mark.asyncio(loop_scope="module")]

TAKE = """
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
"""
NAIVE = "self.addEventListener('fetch', (event) => event.respondWith(fetch(event.request)));"
REMEDIED = """
self.addEventListener("fetch", (event) => {
  if (event.request.headers.get("Accept") === "text/event-stream") return;
  event.respondWith(fetch(event.request));
});
"""
WORKERS = {"/naive.js": TAKE + NAIVE, "/remedied.js": TAKE + REMEDIED}
REGISTER = """
async (script) => {
  const claimed = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
  await navigator.serviceWorker.register(script);
  await claimed;
}
"""


async def site(request: web.BaseRequest) -> web.Response:
    script = WORKERS.get(request.path)
    if script is not None:
        return web.Response(text=script, content_type="text/javascript")
    return web.Response(text="<!doctype html><title>page</title>", content_type="text/html")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that runs."""
    async with browser_running() as running:
        yield running


async def opened(browser: Browser, gateway: Gateway, url: str, worker: str) -> Page:
    """Open a page that the worker controls, with a stream that has an event."""
    page = await browser.context.new_page()
    await page.goto(f"{url}/")
    await page.evaluate(REGISTER, f"{worker}.js")
    await page.evaluate(LISTEN, [f"{gateway.url}/events/orders?client=tab", {}])
    await eventually(lambda: gateway.daemon.streams.active)
    await gateway.post("orders", "1")
    await eventually(lambda: has(page, [1]))
    return page


async def has(page: Page, wanted: list[object]) -> bool:
    """Tell whether the page has got just these."""
    return bool(await page.evaluate("() => got") == wanted)


@pytest.mark.parametrize(
    ("worker", "end", "wanted"),
    [
        ("naive", "expired", [1, "gap no_resume_point", 3]),
        ("remedied", "expired", [1, 2, 3]),
        ("remedied", "cut", [1, 2, 3]),
    ],
)
async def test_a_worker_that_answers_the_stream(
    browser: Browser, worker: str, end: str, wanted: list[object]
) -> None:
    """Through a worker the browser comes back without Last-Event-ID: what was missed must not be silent."""
    async with serving(site) as url, gateway_running(over(url)) as gateway:
        page = await opened(browser, gateway, url, worker)
        streams = gateway.daemon.streams
        (stream,) = streams.active
        if end == "cut":
            stream.abort(end)
        else:
            stream.close(end)
        await eventually(lambda: stream not in streams.active)
        await gateway.post("orders", "2")
        await eventually(lambda: streams.active)
        await gateway.post("orders", "3")
        await eventually(lambda: has(page, wanted))
        await page.close()


async def test_a_cut_through_a_worker_is_the_end(browser: Browser) -> None:
    """What docs/browsers.md says of it is wrong: the page needs no other remedy."""
    async with serving(site) as url, gateway_running(over(url)) as gateway:
        page = await opened(browser, gateway, url, "naive")
        (stream,) = gateway.daemon.streams.active
        stream.abort("cut")
        await eventually(lambda: is_closed(page))
        await page.close()


async def is_closed(page: Page) -> bool:
    return bool(await page.evaluate("() => source.readyState") == CLOSED)


def over(url: str) -> dict[str, object]:
    """Return the configuration for a site's pages, with time to miss an event."""
    return {"cors": {"origins": [url]}, "timeouts": {"retry": "1s"}}
