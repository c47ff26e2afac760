"""Our client in Chromium while connections are cut and tabs open and die, all at random, for a minute.

``ENDURANCE_SECONDS=600`` makes it ten minutes, ``ENDURANCE_SEED`` repeats one.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from playwright.async_api import Page

from tests.clients.tap import Tap, tapped
from tests.support.browser import Browser, browser_running
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.extended

SECONDS = float(os.environ.get("ENDURANCE_SECONDS", "60"))
CHANNELS = ("orders", "stock")
MOST_TABS = 4

OPEN = """
async ([module, url, share]) => {
  const { connect } = await import(module);
  window.got = [];
  window.stream = connect(url, { channels: ["orders", "stock"], share, minDelay: 50, maxDelay: 500 });
  stream.on("*", (event) => got.push(event.type === "stream.gap" ? event.reason : event.payload));
  stream.on("state", ({ state }) => { if (state === "closed") got.push("closed"); });
  await new Promise((open) => stream.on("state", ({ state }) => state === "open" && open()));
}
"""


class Tabs:
    """The tabs of one origin, which read the same channels; what each got is looked at before it goes."""

    def __init__(self, browser: Browser, host: str, module: str, url: str, *, share: bool) -> None:
        self._browser = browser
        self._about = [module, url, share]
        self.host = host
        self.open: list[Page] = []
        self.seen = 0

    @property
    def origin(self) -> str:
        return self._browser.origin(self.host)

    async def add(self) -> None:
        """Open one more, and wait until it says that its stream is open."""
        page = await self._browser.page(self.host)
        self.open.append(page)
        await page.evaluate(OPEN, self._about)

    async def check(self, page: Page) -> list[Any]:
        """Make sure that it got every event from its first one on, once and in order."""
        got = list(await page.evaluate("got"))
        if got:
            assert got == list(range(got[0], got[0] + len(got))), f"{self.host}: {odd(got)}"
        self.seen += 1
        return got

    async def end(self, luck: random.Random) -> None:
        """Close any of them, or kill its renderer, as a crash would."""
        page = self.open.pop(luck.randrange(len(self.open)))
        await self.check(page)
        if luck.random() < 0.5:
            await page.close()
        else:
            session = await page.context.new_cdp_session(page)
            crashed = asyncio.ensure_future(page.wait_for_event("crash"))
            crash = asyncio.ensure_future(session.send("Page.crash"))  # has no answer
            await crashed
            crash.cancel()
            await asyncio.gather(crash, return_exceptions=True)
            await page.close()


def odd(got: list[Any]) -> list[Any]:
    """Return what is around the first place where a list does not go on by one."""
    for place in range(1, len(got)):
        if not isinstance(got[place], int) or got[place] != got[place - 1] + 1:
            return got[max(0, place - 3) : place + 3]
    return got[:3]


class Ordeal:
    """What happens to them: each part goes on until the time is over."""

    def __init__(self, gateway: Gateway, tap: Tap, seed: int) -> None:
        self.gateway = gateway
        self.tap = tap
        self.luck = random.Random(seed)
        self.published = 0
        self.most: dict[str, int] = {}
        self._over = asyncio.get_running_loop().time() + SECONDS

    @property
    def is_over(self) -> bool:
        return asyncio.get_running_loop().time() > self._over

    async def publish(self) -> None:
        """Post numbers, in order, to both channels."""
        while not self.is_over:
            await self.gateway.post(CHANNELS[self.luck.randrange(2)], str(self.published))
            self.published += 1
            await asyncio.sleep(0.01)

    async def cut(self) -> None:
        """End all connections: in mid-event, at an event's end, silently, and by a door that stays shut."""
        ways: Mapping[str, Callable[[], Awaitable[None]]] = {
            "cut": self._cut, "abort": self._abort, "die": self._die, "shut": self._shut
        }  # fmt: skip
        while not self.is_over:
            await asyncio.sleep(self.luck.uniform(0.1, 3))
            await ways[self.luck.choice(tuple(ways))]()

    async def _cut(self) -> None:
        self.tap.cut()

    async def _abort(self) -> None:
        for stream in list(self.gateway.daemon.streams.active):
            stream.close("max_age")

    async def _die(self) -> None:
        self.tap.die()
        await asyncio.sleep(3)  # the watchdog's patience, and a reconnect

    async def _shut(self) -> None:
        self.tap.shut()
        await asyncio.sleep(self.luck.uniform(0, 1))
        await self.tap.open()

    async def come_and_go(self, tabs: Tabs) -> None:
        """Open and end tabs; one stays, whichever."""
        while not self.is_over:
            if len(tabs.open) < MOST_TABS and (len(tabs.open) == 1 or self.luck.random() < 0.5):
                await tabs.add()
            else:
                await tabs.end(self.luck)
            await asyncio.sleep(self.luck.uniform(0, 1.5))

    async def count(self) -> None:
        """Note the most connections that an origin had at once, but for those that are silently dead."""
        while not self.is_over:
            streams = self.gateway.daemon.streams.active
            origins = [str(stream.origin) for stream in list(streams) if stream.close_reason is None]
            for origin in set(origins):
                self.most[origin] = max(self.most.get(origin, 0), origins.count(origin))
            await asyncio.sleep(0.005)


@pytest.mark.timeout(SECONDS + 340)
async def test_published_equals_received_while_all_goes_wrong_at_random() -> None:
    """In one tab, in tabs that share a stream, and with a worker: every event once and in order, one connection each."""
    seed = int(os.environ.get("ENDURANCE_SEED", random.randrange(2**32)))
    print(f"ENDURANCE_SEED={seed}")
    hosts = ("plain.localhost", "tabs.localhost", "worker.localhost")
    async with browser_running() as browser:
        over = {
            "cors": {"origins": [browser.origin(host) for host in hosts]},
            "timeouts": {"retry": "50ms", "heartbeat": "1s"},
            "channels": {name: {"history": {"events": 5000}} for name in CHANNELS},
        }
        async with gateway_running(over) as gateway:
            tap = Tap(gateway.port)
            async with tapped(tap):
                url = f"http://127.0.0.1:{tap.port}"
                # A module of another origin can have no worker: its tabs elect one of them.
                all_tabs = [
                    Tabs(browser, host, module, url, share=host != "plain.localhost")
                    for host, module in zip(
                        hosts, ("/client.js", f"{gateway.url}/client.js", "/client.js"), strict=True
                    )
                ]
                for tabs in all_tabs:
                    await tabs.add()
                ordeal = Ordeal(gateway, tap, seed)
                async with asyncio.TaskGroup() as parts:
                    parts.create_task(ordeal.publish())
                    parts.create_task(ordeal.cut())
                    parts.create_task(ordeal.count())
                    for tabs in all_tabs[1:]:
                        parts.create_task(ordeal.come_and_go(tabs))
                last = ordeal.published - 1
                await asyncio.gather(*(arrived(page, last) for tabs in all_tabs for page in tabs.open))
                for tabs in all_tabs:
                    for page in tabs.open:
                        got = await tabs.check(page)
                        assert not got or got[-1] == last
                (plain,) = all_tabs[0].open
                assert await plain.evaluate("got") == list(range(ordeal.published))
                assert ordeal.most == {browser.origin(host): 1 for host in hosts}


async def arrived(page: Page, last: int) -> None:
    """Wait until the last event is there, where any came after the tab did."""
    await eventually(lambda: page.evaluate(f"!got.length || got.at(-1) === {last}"))
