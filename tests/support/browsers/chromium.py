"""Chromium of Debian, by Playwright."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from tests.support.browser import FLAGS
from tests.support.browsers.tab import call
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.needs import need

# Playwright turns these off; people's browsers have them.
KEPT = ["--disable-back-forward-cache"]


class ChromiumTab:
    """A page of Playwright's."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._noise: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._noise.append(f"thrown: {error}"))

    def _said(self, message: ConsoleMessage) -> None:
        self._noise.append(f"{message.type}: {message.text}")

    async def open(self, url: str) -> None:
        await self.page.goto(url)

    async def evaluate(self, function: str, *arguments: Any) -> Any:
        return await call(self.page.evaluate, function, arguments)

    async def back(self) -> None:
        await self.page.go_back(wait_until="commit")

    async def forward(self) -> None:
        await self.page.go_forward(wait_until="commit")

    async def show(self) -> None:
        await self.page.bring_to_front()

    async def close(self) -> None:
        await self.page.close()

    async def kill(self) -> None:
        session = await self.page.context.new_cdp_session(self.page)
        async with self.page.expect_event("crash"):
            order = asyncio.ensure_future(session.send("Page.crash"))
        order.cancel()  # who would answer is dead
        await self.page.close()

    async def noise(self) -> list[str]:
        return list(self._noise)


class ChromiumProfile:
    """A context of Playwright's, which is like a window in private mode."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context

    async def tab(self, url: str) -> ChromiumTab:
        tab = ChromiumTab(await self.context.new_page())
        await tab.open(url)
        return tab

    async def go_offline(self) -> None:
        await self.context.set_offline(True)

    async def go_online(self) -> None:
        await self.context.set_offline(False)


class Chromium:
    """One process with its children; headless."""

    title: ClassVar[str] = "Chromium"
    can_go_offline: ClassVar[bool] = True
    can_kill: ClassVar[bool] = True
    can_hide: ClassVar[bool] = False  # Playwright lets every page believe that somebody looks at it
    worker_stays: ClassVar[bool] = True
    worker_says_goodbye: ClassVar[bool] = True
    keeps_pages_with_requests: ClassVar[bool] = True

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    @asynccontextmanager
    async def profile(self) -> AsyncIterator[ChromiumProfile]:
        """Make a context; it ends with all its tabs."""
        context = await self._browser.new_context()
        context.set_default_timeout(SAFETY_SECONDS * 1000)
        try:
            yield ChromiumProfile(context)
        finally:
            async with safety_net():
                await context.close()


@asynccontextmanager
async def chromium_running() -> AsyncIterator[Chromium]:
    """Run a Chromium; it ends with the block."""
    program = need("chromium", "chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=FLAGS, ignore_default_args=KEPT
        )
        try:
            yield Chromium(browser)
        finally:
            async with safety_net():
                await browser.close()
