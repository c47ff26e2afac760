"""WebKitGTK of Debian: its MiniBrowser, driven over WebDriver, on a screen that nobody sees."""

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import DEVNULL
from typing import Any, ClassVar

import aiohttp

from bench.process import free_port, running, wait_for_port
from tests.support.browsers.tab import call
from tests.support.deadline import SAFETY_SECONDS
from tests.support.needs import need

ENVIRON = {
    "WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1",  # it has none for root
    "WEBKIT_DISABLE_COMPOSITING_MODE": "1",  # nor a graphics card
    "GDK_BACKEND": "x11",
}
LIBRARIES = f"/usr/lib/{platform.machine()}-linux-gnu/webkit2gtk-4.1"


class WebKitTab:
    """A window handle. WebDriver has one current window, so each order goes to its window first."""

    def __init__(self, profile: "WebKitProfile", handle: str) -> None:
        self._profile = profile
        self._handle = handle

    async def _ask(self, method: str, path: str, **body: Any) -> Any:
        await self._profile.ask("POST", "/window", handle=self._handle)
        return await self._profile.ask(method, path, **body)

    async def open(self, url: str) -> None:
        await self._ask("POST", "/url", url=url)

    async def evaluate(self, function: str, *arguments: Any) -> Any:
        return await call(self._call, function, arguments)

    async def _call(self, function: str, text: str) -> Any:
        script = f"const done = arguments[1]; ({function})(arguments[0]).then(done, (error) => done({{error: String(error)}}))"
        answer = await self._ask("POST", "/execute/async", script=script, args=[text])
        assert isinstance(answer, str), answer
        return answer

    async def back(self) -> None:
        await self._ask("POST", "/back")

    async def forward(self) -> None:
        await self._ask("POST", "/forward")

    async def show(self) -> None:
        await self._profile.ask("POST", "/window", handle=self._handle)

    async def close(self) -> None:
        await self._ask("DELETE", "/window")

    async def kill(self) -> None:
        raise NotImplementedError("the driver ends the session when a page crashes")

    async def noise(self) -> list[str]:
        return list(await self.evaluate("() => noise"))


class WebKitProfile:
    """A session of WebDriver, which is a MiniBrowser of its own that keeps nothing."""

    def __init__(self, session: aiohttp.ClientSession, path: str) -> None:
        self._session = session
        self._path = path
        self._begun = False

    async def ask(self, method: str, path: str, **body: Any) -> Any:
        return await _ask(self._session, method, self._path + path, body)

    async def tab(self, url: str) -> WebKitTab:
        # An order needs a window that is there, and the last one may have been closed.
        first, *_ = await self.ask("GET", "/window/handles")
        await self.ask("POST", "/window", handle=first)
        if self._begun:
            handle = (await self.ask("POST", "/window/new", type="tab"))["handle"]
        else:  # the one that it starts with is in front for good
            handle = await self.ask("GET", "/window")
        self._begun = True
        tab = WebKitTab(self, handle)
        await tab.open(url)
        return tab

    async def go_offline(self) -> None:
        raise NotImplementedError("WebDriver has no order for it")

    async def go_online(self) -> None:
        raise NotImplementedError("WebDriver has no order for it")


class WebKit:
    """A screen; a driver and a browser only while there is a profile."""

    title: ClassVar[str] = "WebKitGTK"
    can_go_offline: ClassVar[bool] = False
    can_kill: ClassVar[bool] = False
    can_hide: ClassVar[bool] = False  # all but the first tab are hidden for good
    worker_stays: ClassVar[bool] = False
    worker_says_goodbye: ClassVar[bool] = False
    keeps_pages_with_requests: ClassVar[bool] = True

    def __init__(self, driver: str, browser: str, environ: dict[str, str]) -> None:
        self._driver = driver
        self._browser = browser
        self._environ = environ

    @asynccontextmanager
    async def profile(self) -> AsyncIterator[WebKitProfile]:
        """Start a driver and a browser. Both are killed: asked to go, the browser may not answer any more."""
        port = free_port()
        with running(self._driver, f"--port={port}", stderr=DEVNULL, **self._environ) as process:
            await asyncio.to_thread(wait_for_port, port, alive=process.is_running)
            timeout = aiohttp.ClientTimeout(SAFETY_SECONDS)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout) as session:
                options = {"binary": self._browser, "args": ["--automation"]}
                wanted = {"capabilities": {"alwaysMatch": {"webkitgtk:browserOptions": options}}}
                path = f"/session/{(await _ask(session, 'POST', '/session', wanted))['sessionId']}"
                yield WebKitProfile(session, path)


async def _ask(session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any]) -> Any:
    has_body = method == "POST"
    async with session.request(method, path, json=body if has_body else None) as answer:
        value = (await answer.json())["value"]
        assert answer.status == 200, f"{method} {path}: {value}"
        return value


@asynccontextmanager
async def webkit_running() -> AsyncIterator[WebKit]:
    """Run a screen, which ends with the block."""
    screen, driver = need("Xvfb", "xvfb"), need("WebKitWebDriver", "webkit2gtk-driver")
    browser = need("MiniBrowser", "libwebkit2gtk-4.1-0", LIBRARIES)
    with running(screen, "-displayfd", "1", "-nolisten", "tcp") as shown:
        yield WebKit(driver, browser, {**ENVIRON, "DISPLAY": f":{shown.answer()}"})
