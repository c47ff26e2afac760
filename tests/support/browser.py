"""A real Chromium (Debian's), and pages for it on whatever host they are to come from."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aiohttp import web
from playwright.async_api import BrowserContext, Page, async_playwright, expect

from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.issuer import serving
from tests.support.needs import need

CLIENT = Path(__file__).parents[2] / "client" / "client.js"

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip

# The five lines that a frontend developer writes, plus lists that the test reads.
LISTEN = """
([url, options]) => {
  window.got = [];
  window.told = [];
  window.source = new EventSource(url, options);
  source.onmessage = (event) => got.push(JSON.parse(event.data).payload);
  source.addEventListener("message", (event) => { window.last = event.lastEventId; });
  source.addEventListener("order.created", (event) => got.push(JSON.parse(event.data).payload));
  source.addEventListener("stream.gap", (event) => got.push("gap " + JSON.parse(event.data).reason));
  source.addEventListener("stream.close", (event) => told.push(JSON.parse(event.data).reason));
}
"""

CONNECTING, OPEN, CLOSED = 0, 1, 2
"""``readyState`` of an EventSource."""


@dataclass(frozen=True)
class Browser:
    """One profile: all its pages share cookies and connections, as the tabs of a person do."""

    context: BrowserContext
    port: int

    def origin(self, host: str = "127.0.0.1") -> str:
        """Return the origin of the pages of a host; Chromium itself resolves ``*.localhost``."""
        return f"http://{host}:{self.port}"

    async def page(self, host: str = "127.0.0.1") -> Page:
        """Open an empty page of a host."""
        page = await self.context.new_page()
        await page.goto(self.origin(host))
        return page


@asynccontextmanager
async def browser_running(*flags: str, takes_all_cookies: bool = False) -> AsyncIterator[Browser]:
    """Run a Chromium, and a server of empty pages; both end with the block, however that ends.

    Unless it ``takes_all_cookies``, it has none for a page of another site than the cookie's.
    """
    executable = need("chromium", "chromium")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(_empty))
        # Chromium's last process may still write when the folder goes.
        folder = stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        _write_preferences(Path(folder), cookie_controls_mode=0 if takes_all_cookies else 1)
        playwright = await stack.enter_async_context(async_playwright())
        context = await playwright.chromium.launch_persistent_context(
            folder, executable_path=executable, args=[*FLAGS, *flags]
        )
        stack.push_async_callback(_close, context)
        context.set_default_timeout(SAFETY_SECONDS * 1000)
        expect.set_options(timeout=SAFETY_SECONDS * 1000)
        yield Browser(context, int(url.rpartition(":")[2]))


async def _close(context: BrowserContext) -> None:
    async with safety_net():
        await context.close()


def _write_preferences(folder: Path, **profile: int) -> None:
    (folder / "Default").mkdir()
    (folder / "Default" / "Preferences").write_text(json.dumps({"profile": profile}))


@asynccontextmanager
async def page_of_another_origin(*flags: str) -> AsyncIterator[tuple[Page, str]]:
    """Run a Chromium with one empty page; yields the page and its origin."""
    async with browser_running(*flags) as browser:
        yield await browser.page(), browser.origin()


async def _empty(request: web.BaseRequest) -> web.Response:
    if request.path == "/client.js":  # of the page's own origin, as an application ships it
        return web.Response(body=CLIENT.read_bytes(), content_type="text/javascript")
    return web.Response(text="<!doctype html><title>page</title>", content_type="text/html")


async def listen(page: Page, url: str, **options: Any) -> None:
    """Open an EventSource in a page."""
    await page.evaluate(LISTEN, [url, options])


async def got(page: Page) -> list[object]:
    """Return the payloads that the page's EventSource brought."""
    return list(await page.evaluate("got"))


async def has(page: Page, wanted: list[object]) -> bool:
    """Tell whether it brought just these."""
    return await got(page) == wanted


async def is_in_state(page: Page, state: int) -> bool:
    """Tell whether it is connecting, open or closed."""
    return bool(await page.evaluate("source.readyState") == state)


async def was_told(page: Page, reason: str) -> bool:
    """Tell whether a ``stream.close`` with a reason came."""
    return reason in await page.evaluate("told")
