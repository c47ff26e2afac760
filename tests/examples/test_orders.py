"""``make demo`` in Chromium: rows that move, in every tab, over one stream, and through whatever the demo says to try."""

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import BrowserContext, Page, expect

from bench.process import free_port
from tests.support.browser import browser_running
from tests.support.console import faults
from tests.support.deadline import safety_net
from tests.support.gateway import eventually

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]
HISTORY = 200
"""Events that the example's channel keeps."""

OF_THE_NETWORK = re.compile(r"Failed to load resource: net::ERR_")
"""What the browser itself writes about a server that is gone."""

_ROWS = "() => [...document.querySelectorAll('#orders tr')].map(({dataset}) => [+dataset.number, +dataset.version])"

SHOWN = 12
"""Rows of the page: the newest orders."""


@dataclass
class Demo:
    """The running demo."""

    process: asyncio.subprocess.Process
    log: Path
    port: int
    gateway: int
    admin: int

    @property
    def said(self) -> str:
        """What it printed."""
        return self.log.read_text()

    @property
    def gateways(self) -> list[int]:
        """The processes that it said how to stop."""
        return [int(pid) for pid in re.findall(r"kill (\d+)", self.said)]

    async def get(self, port: int, path: str) -> Any:
        """Get a path of one of its ports."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}") as answer,
        ):
            return await (answer.json() if answer.content_type == "application/json" else answer.text())

    async def streams(self) -> int:
        """Return how many streams the gateway has."""
        return int((await self.get(self.admin, "/status"))["streams"]["active"])

    async def changes(self) -> int:
        """Return how much happened in the shop."""
        return int((await self.get(self.port, "/orders"))["changes"])


@asynccontextmanager
async def demo_running(folder: Path, *options: str, **ports: int) -> AsyncIterator[Demo]:
    """Run the demo on ports of its own; it ends with the block, and whatever it started."""
    given = {"port": free_port(), "gateway": free_port(), "admin": free_port(), **ports}
    log = folder / "demo.log"
    with log.open("w") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "examples/orders/demo.py"), *options,
            *(f"--{name}={port}" for name, port in given.items()),
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        yield Demo(process, log, **given)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def started(folder: Path, *options: str) -> AsyncIterator[Demo]:
    """Run the demo until its gateway answers."""
    async with demo_running(folder, *options) as demo:
        await eventually(lambda: demo.gateways or demo.process.returncode is not None)
        assert demo.gateways, demo.said
        yield demo


async def shown(context: BrowserContext, demo: Demo, troubles: list[str]) -> Page:
    """Open the page in a tab."""
    page = await context.new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda line: troubles.append(line.text))
    await page.goto(f"http://127.0.0.1:{demo.port}/")
    await is_live(page)
    return page


async def is_live(page: Page) -> None:
    await expect(page.locator("#state")).to_have_text("Live")


async def is_current(page: Page, demo: Demo) -> None:
    """Wait until it shows what the shop has now, or what became of that."""
    orders = (await demo.get(demo.port, "/orders"))["orders"]
    wanted = sorted([order["number"], order["version"]] for order in orders)[-SHOWN:]

    async def is_shown() -> bool:
        rows = dict(await page.evaluate(_ROWS))
        is_whole = len(rows) == min(SHOWN, len(orders)) or len(rows) == SHOWN
        # A row that is not there any more has given way to newer ones.
        return is_whole and all(
            rows[number] >= version if number in rows else number < min(rows) for number, version in wanted
        )

    await eventually(is_shown)


async def test_all_tabs_show_the_shop_over_one_stream(tmp_path: Path) -> None:
    """Rows that stand still, a tab that lags, a stream for each of them, a word in the console, or a row cut off."""
    troubles: list[str] = []
    async with browser_running() as browser, started(tmp_path, "--every=0.3") as demo:
        page = await shown(browser.context, demo, troubles)
        await is_current(page, demo)
        before = await page.evaluate(_ROWS)
        await eventually(lambda: _has_moved(page, before))
        other = await shown(browser.context, demo, troubles)
        await is_current(other, demo)
        await is_current(page, demo)
        assert await demo.streams() == 1
        for width in (360, 1280):
            for scheme in ("light", "dark"):
                await page.set_viewport_size({"width": width, "height": 900})
                await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                assert await faults(page) == [], (width, scheme)
        await page.close()  # whichever of them had the stream, the other one goes on
        await is_current(other, demo)
        assert "gap" not in await other.inner_text("#story")
        assert await demo.streams() == 1
        assert troubles == []


async def _has_moved(page: Page, before: object) -> bool:
    return bool(await page.evaluate(_ROWS) != before)


async def test_a_gateway_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    """As the demo says: the page tells it, and goes on with nothing missing. Ctrl-C then leaves nothing behind."""
    troubles: list[str] = []
    async with browser_running() as browser, started(tmp_path, "--every=0.3", "--restart=1") as demo:
        page = await shown(browser.context, demo, troubles)
        os.kill(demo.gateways[0], signal.SIGKILL)
        await expect(page.locator("#state")).to_have_text("Reconnecting")
        await expect(page.locator("#why")).to_contain_text("network")
        late = await browser.context.new_page()
        await late.goto(f"http://127.0.0.1:{demo.port}/")
        await expect(late.locator("#state")).to_have_text("The gateway does not answer")
        await eventually(lambda: len(demo.gateways) == 2)
        for tab in (page, late):
            await is_live(tab)
            await is_current(tab, demo)
        assert "gap" not in await page.inner_text("#story")
        assert [each for each in troubles if not OF_THE_NETWORK.search(each)] == []
        os.killpg(demo.process.pid, signal.SIGINT)  # as a terminal does: to the gateway too
        async with safety_net():
            assert await demo.process.wait() == 0
        for port in (demo.port, demo.gateway, demo.admin):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert "Traceback" not in demo.said
        assert demo.said.count("another one starts") == 1


async def test_a_gap_makes_the_page_ask_the_shop_again(tmp_path: Path) -> None:
    """Away for longer than the history: rows that are wrong, and nobody knows."""
    troubles: list[str] = []
    async with browser_running() as browser, started(tmp_path, "--every=0.005") as demo:
        page = await shown(browser.context, demo, troubles)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await browser.context.set_offline(True)
        await expect(page.locator("#state")).to_have_text("Offline")
        until = await demo.changes() + HISTORY + 10
        await page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert await faults(page) == []
        await eventually(lambda: _reaches(demo, until))
        await browser.context.set_offline(False)
        await expect(page.locator("#story")).to_contain_text("(expired): asking the shop again.")
        await is_live(page)
        await eventually(lambda: _is_fetched_after_the_gap(page))
        assert any(url.endswith("/orders") for url in asked)
        assert [each for each in troubles if not OF_THE_NETWORK.search(each)] == []


async def _is_fetched_after_the_gap(page: Page) -> bool:
    newest, _, _ = (await page.inner_text("#story")).partition("(expired)")
    return "Fetched " in newest


async def _reaches(demo: Demo, changes: int) -> bool:
    return await demo.changes() >= changes


@pytest.mark.parametrize(("which", "told"), [("port", "Try another port: --port"), ("gateway", "in use")])
async def test_a_port_that_is_taken_is_told(which: str, told: str, tmp_path: Path) -> None:
    """One line that says what to do, and no traceback; nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with demo_running(tmp_path, **{which: taken.getsockname()[1]}) as demo:
            async with safety_net():
                assert await demo.process.wait() != 0
            assert told in demo.said
            assert "Traceback" not in demo.said
