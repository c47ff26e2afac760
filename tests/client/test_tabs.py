"""Tabs that share a stream, where the one that leads does harm: it hangs, or is shown again after a long sleep."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from playwright.async_api import Page

from tests.clients.tap import Tap, tapped
from tests.support.browser import Browser, browser_running
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

pytestmark = pytest.mark.extended

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


# A request that blocks the tab's script until it is answered.
HANG = """
(url) => void setTimeout(() => {
  const request = new XMLHttpRequest();
  request.open("GET", url, false);
  request.send();
})
"""


async def test_a_tab_that_hangs_is_robbed_of_the_lead() -> None:
    """Its script does not end: a tab that opens gets no answer, and leads; nobody loses or repeats an event."""
    hangs, is_over = asyncio.Event(), asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.Response:
        hangs.set()
        await is_over.wait()
        return web.Response(headers={"Access-Control-Allow-Origin": "*"})

    async with shared() as (gateway, browser), serving(answer) as url:
        first = await opened(gateway, browser)
        second = await opened(gateway, browser)
        await gateway.post("orders", "1")
        await shows(first, [1])
        await shows(second, [1])
        await first.evaluate(HANG, url)
        async with safety_net():
            await hangs.wait()
        third = await opened(gateway, browser)
        await gateway.post("orders", "2")
        await shows(third, [2])
        await shows(second, [1, 2])
        is_over.set()
        await eventually(
            lambda: len(gateway.daemon.streams.active) == 1
        )  # the first one is back, and lets go
        await gateway.post("orders", "3")
        for page, got in ((first, [1, 2, 3]), (second, [1, 2, 3]), (third, [2, 3])):
            await shows(page, got)
            assert await page.evaluate("stream.state") == "open"


async def shows(page: Page, got: list[int]) -> None:
    """Wait until a tab has just these."""

    async def has() -> bool:
        return list(await page.evaluate("got")) == got

    await eventually(has)


SLOW = """
const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage");
Object.defineProperty(BroadcastChannel.prototype, "onmessage", {
  set(hear) {
    set.call(this, (message) => setTimeout(hear, window.slow && message.data.event ? slow : 0, message));
  },
});
window.posted = 0;
const { postMessage } = BroadcastChannel.prototype;
BroadcastChannel.prototype.postMessage = function (message) {
  posted++;
  return postMessage.call(this, message);
};
"""


async def test_a_leader_may_be_behind_the_tabs_that_it_leads() -> None:
    """It got the lock before the last broadcasts: the others have what it resumes with, drop that, and go on."""
    async with shared() as (gateway, browser):
        await browser.context.add_init_script(SLOW)
        first, second, third = [await opened(gateway, browser) for _ in range(3)]
        await second.evaluate("window.slow = 4000")
        for number in (1, 2):
            await gateway.post("orders", str(number))
        await shows(third, [1, 2])
        await first.close()
        await eventually(lambda: second.evaluate("got.length === 2"))
        await gateway.post("orders", "3")
        await shows(third, [1, 2, 3])
        await shows(second, [1, 2, 3])
        assert await second.evaluate("posted") < 30


async def test_tabs_share_a_channel_that_keeps_nothing() -> None:
    """history: none has no ids to tell what is missing by: each event reaches each tab, once, also one that waited."""
    async with browser_running() as browser:
        over = {"cors": {"origins": [browser.origin()]}, "channels": {"orders": {"history": "none"}}}
        async with gateway_running(over) as gateway, tapped(Tap(gateway.port)) as (tap,):
            tap.shut()
            tabs = [await browser.page() for _ in range(3)]
            url = f"http://127.0.0.1:{tap.port}"
            opening = [
                asyncio.create_task(tab.evaluate(OPEN, [f"{gateway.url}/client.js", url])) for tab in tabs
            ]
            for tab in tabs:  # told by the one that leads
                await tab.wait_for_function("window.stream?.state === 'waiting'")
            await tap.open()
            await asyncio.gather(*opening)
            for number in (1, 2, 3):
                await gateway.post("orders", str(number))
            for tab in tabs:
                await shows(tab, [1, 2, 3])
            await tabs.pop(0).close()
            await eventually(lambda: len(gateway.daemon.streams.active) == 1)
            await eventually(lambda: tabs[0].evaluate("stream.state === 'open'"))


async def test_where_no_lock_may_be_had_each_tab_leads_itself() -> None:
    """A sandboxed frame may ask for no lock: the frame must not hang, and its stream is its own."""
    async with browser_running() as browser:
        over = {"cors": {"origins": ["*"], "credentials": False}}
        async with gateway_running(over) as gateway:
            page = await browser.page()
            said: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            script = f"""
              import {{ connect }} from "{gateway.url}/client.js";
              const stream = connect("{gateway.url}", {{ channels: ["orders"], share: true }});
              stream.on("orders", ({{ payload }}) => console.log(`got ${{payload}}`));
            """
            frame = "(page) => document.body.append(Object.assign(document.createElement('iframe'), page))"
            source = f'<script type="module">{script}</script>'
            await page.evaluate(frame, {"sandbox": "allow-scripts", "srcdoc": source})
            await eventually(lambda: len(gateway.daemon.streams.active) == 1)
            await gateway.post("orders", "1")
            await eventually(lambda: said == ["got 1"])


async def test_what_an_application_hands_over_reaches_the_worker() -> None:
    """Channels of a framework (a proxy), a function too many: what no message can carry harms nothing."""
    async with (
        browser_running() as browser,
        gateway_running({"cors": {"origins": [browser.origin()]}}) as gateway,
    ):
        page = await browser.page()
        strange = OPEN.replace('["orders"]', 'new Proxy(["orders"], {}), onError: () => {}')
        await page.evaluate(strange, ["/client.js", gateway.url])
        await gateway.post("orders", "1")
        await shows(page, [1])
        assert (
            await page.evaluate("navigator.locks.query().then(({ held }) => held.length)") == 2
        )  # the worker leads


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
        assert len(gateway.daemon.streams.active) == 3
        await gateway.post("orders", "1")
        await gateway.post("stock", "2")
        for page, got in ((first, [1]), (second, [2]), (third, [1])):
            await shows(page, got)
