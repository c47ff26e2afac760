"""Who may read, seen from pages in a real Chromium: cookies, tickets, tokens, origins, drops, tabs."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import jwt
import pytest
from playwright.async_api import Page
from structlog.testing import capture_logs

from tests.support.authority import Authority
from tests.support.browser import (
    CLOSED,
    CONNECTING,
    Browser,
    browser_running,
    got,
    has,
    is_in_state,
    listen,
    was_told,
)
from tests.support.expiry import end_tokens
from tests.support.gateway import Gateway, eventually, gateway_running, merged

pytestmark = pytest.mark.extended

SameSite = Literal["Lax", "None"]
SECRET = "s" * 32

# The registrable domain of app.example.localhost is example.localhost: SameSite goes by that.
HOST = "events.example.localhost"
APP, SISTER, OTHER = "app.example.localhost", "admin.example.localhost", "app.other.localhost"

BUY = """
async ([url, token]) => {
  const answer = await fetch(url, {method: "POST", headers: {Authorization: `Bearer ${token}`}});
  return (await answer.json()).ticket;
}
"""

# What clients that use fetch do, in short: parse blocks, remember the last id, come back with it.
FETCH = """
async ([url, token, last]) => {
  window.got ??= [];
  window.last ??= last;
  const headers = {Authorization: `Bearer ${token}`, "Last-Event-ID": window.last};
  const answer = await fetch(url, {headers});
  const read = async () => {
    let text = "";
    for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
      const blocks = (text + part).split("\\n\\n");
      text = blocks.pop();
      for (const block of blocks) {
        window.last = block.match(/^id: (.*)$/m)?.[1] ?? window.last;
        if (!/^event: /m.test(block)) got.push(JSON.parse(block.match(/^data: (.*)$/m)[1]).payload);
      }
    }
  };
  window.cut = false;
  read().catch(() => { window.cut = true; });
  return answer.status;
}
"""

TRY_FETCH = (
    "([url]) => fetch(url, {headers: {Authorization: 'Bearer x'}}).then((r) => r.status, () => 'refused')"
)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A Chromium of the test's own."""
    async with browser_running() as running:
        yield running


def config(browser: Browser, **over: Any) -> Any:
    """Return a configuration that lets the pages of all hosts in, with every kind of credential."""
    base = {
        "cors": {"origins": [browser.origin(host) for host in (APP, SISTER, OTHER)], "credentials": True},
        "timeouts": {"retry": "300ms"},
        "auth": {
            "jwt": {"algorithms": ["HS256"], "secret": SECRET, "leeway": "1ms"},
            "cookie": "token",
            "tickets": {},
        },
        "channels": {"private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"}},
    }
    return merged(base, over)


def token(expires: float | None = None) -> str:
    claims = {"exp": expires or time.time() + 600, "sub": "42", "channels": ["private"]}
    return jwt.encode(claims, SECRET)


def url(gateway: Gateway, path: str, scheme: str = "http") -> str:
    return f"{scheme}://{HOST}:{gateway.port}{path}"


async def sign_in(browser: Browser, expires: float | None = None, *, same_site: SameSite = "Lax") -> None:
    """Give the browser the cookie that the login page of the app would set for all of its site."""
    await browser.context.add_cookies(
        [
            {
                "name": "token",
                "value": token(expires),
                "domain": ".example.localhost",
                "path": "/",
                "httpOnly": True,
                "secure": same_site == "None",
                "sameSite": same_site,
            }
        ]
    )


def sever(gateway: Gateway) -> None:
    """Cut the connections of all streams."""
    for stream in list(gateway.daemon.streams.active):
        stream.transport.abort()


async def preflights(page: Page) -> list[str]:
    """Return a list that grows with what the page's preflights ask for: the page itself never sees them."""
    seen: list[str] = []

    def note(event: Any) -> None:
        headers = event["request"]["headers"]
        if event["request"]["method"] == "OPTIONS":
            names = headers["Access-Control-Request-Headers"]
            seen.append(f"{headers['Access-Control-Request-Method']} {names}")

    session = await page.context.new_cdp_session(page)
    session.on("Network.requestWillBeSent", note)
    await session.send("Network.enable")
    return seen


async def refused(gateway: Gateway, reason: str) -> float:
    return await gateway.metric(f'refused_total{{reason="{reason}"}}')


async def test_a_public_channel_is_read_from_another_site(browser: Browser) -> None:
    """A page that needs nobody's leave but its origin's gets no events."""
    async with gateway_running({"cors": {"origins": [browser.origin(OTHER)]}}) as gateway:
        page = await browser.page(OTHER)
        await listen(page, url(gateway, "/events/orders"))
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: has(page, [1]))


async def test_a_cookie_opens_a_stream_where_the_page_says_with_credentials(browser: Browser) -> None:
    """The cookie does not reach the gateway, or an answer without it is tried for ever."""
    async with gateway_running(config(browser)) as gateway:
        await sign_in(browser)
        page = await browser.page(APP)
        await listen(page, url(gateway, "/events/private"))
        await eventually(lambda: is_in_state(page, CLOSED))
        assert await refused(gateway, "missing_token") == 1
        await listen(page, url(gateway, "/events/private"), withCredentials=True)
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("private", "1")
        await eventually(lambda: has(page, [1]))
        assert await refused(gateway, "missing_token") == 1  # the first one stayed closed


@pytest.mark.parametrize(
    ("same_site", "takes_all", "reaches"),
    [("None", True, True), ("None", False, False), ("Lax", True, False)],
)
async def test_which_cookies_reach_a_gateway_of_another_site(
    tmp_path: Path, same_site: SameSite, takes_all: bool, reaches: bool
) -> None:
    """What docs/http.md says of cookies is wrong: SameSite=None; Secure, and a browser that allows it."""
    pair = Authority(tmp_path).server()
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    async with browser_running("--ignore-certificate-errors", takes_all_cookies=takes_all) as browser:
        page = await browser.page(OTHER)
        await sign_in(browser, same_site=same_site)
        async with gateway_running(config(browser, server={"tls": tls})) as gateway:
            await listen(page, url(gateway, "/events/private", "https"), withCredentials=True)
            if reaches:
                await eventually(lambda: gateway.daemon.streams.active)
                await post_over_tls(gateway, "1")
                await eventually(lambda: has(page, [1]))
            else:
                await eventually(lambda: is_in_state(page, CLOSED))
                assert await refused(gateway, "missing_token") == 1


async def post_over_tls(gateway: Gateway, body: str) -> None:
    hook = f"https://127.0.0.1:{gateway.port}/hooks/hooks?topic=private"
    async with gateway.session.post(hook, data=body, ssl=False) as answer:
        assert answer.status == 200


async def test_a_ticket_opens_a_stream_and_opens_it_again_after_a_drop(browser: Browser) -> None:
    """The page cannot buy one (preflight), or the browser's own reconnect with the same URL is refused."""
    async with gateway_running(config(browser)) as gateway:
        page = await browser.page(OTHER)
        asked = await preflights(page)
        ticket = await page.evaluate(BUY, [url(gateway, "/tickets?channel=private"), token()])
        await eventually(lambda: asked == ["POST authorization"])
        await listen(page, url(gateway, f"/events/private?ticket={ticket}"))
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("private", "0")
        await eventually(lambda: has(page, [0]))
        sever(gateway)
        await gateway.post("private", "1")
        await eventually(lambda: has(page, [0, 1]))
        await gateway.post("private", "2")
        await eventually(lambda: has(page, [0, 1, 2]))
        assert await gateway.metric("connections_total") == 2
        assert len(asked) == 1


async def test_fetch_with_a_bearer_resumes_by_its_header(browser: Browser) -> None:
    """The preflight refuses authorization or last-event-id, or is asked for again at each reconnect."""
    async with gateway_running(config(browser)) as gateway:
        (first,) = await gateway.post("private", "0")
        await gateway.post("private", "1")
        page = await browser.page(OTHER)
        asked = await preflights(page)
        arguments = [url(gateway, "/events/private"), token(), first]
        assert await page.evaluate(FETCH, arguments) == 200
        await gateway.post("private", "2")
        await eventually(lambda: has(page, [1, 2]))
        sever(gateway)
        await gateway.post("private", "3")
        await page.wait_for_function("cut")
        assert await page.evaluate(FETCH, arguments) == 200
        await eventually(lambda: has(page, [1, 2, 3]))
        await eventually(lambda: asked == ["GET authorization,last-event-id"])


@pytest.mark.parametrize("kind", ["EventSource", "fetch"])
async def test_a_refused_origin_is_told_in_the_console_and_in_the_log(browser: Browser, kind: str) -> None:
    """Nobody learns which rule to change, after a preflight too, or a page that insists fills the log."""
    stock = {"stock": {"cors": {"origins": ["https://stock.example.com"]}}}
    async with gateway_running(config(browser, channels=stock)) as gateway:
        page = await browser.page(APP)
        console: list[str] = []
        page.on("console", lambda message: console.append(message.text))
        with capture_logs() as lines:
            for _ in range(10):
                if kind == "fetch":
                    told = await page.evaluate(TRY_FETCH, [url(gateway, "/events/stock")])
                    assert told == "refused"
                else:
                    await listen(page, url(gateway, "/events/stock"))
                    await eventually(lambda: is_in_state(page, CLOSED))
            assert await refused(gateway, "origin_refused") == 10
        await eventually(lambda: sum("blocked by CORS policy" in line for line in console) == 10)
        (line,) = [line for line in lines if line["event"] == "stream_refused"]
        assert line["origin"] == browser.origin(APP)
        assert browser.origin(APP) in line["reason"]
        assert 'channels."stock".cors.origins' in line["reason"]


async def opened_with_a_token(browser: Browser, gateway: Gateway) -> Page:
    page = await browser.page(APP)
    await sign_in(browser)
    await listen(page, url(gateway, "/events/private"), withCredentials=True)
    await eventually(lambda: gateway.daemon.streams.active)
    await gateway.post("private", "0")
    await eventually(lambda: has(page, [0]))
    return page


async def test_a_fresh_cookie_takes_over_when_the_token_ends(browser: Browser) -> None:
    """The end of a token costs events, or an EventSource that has a fresh one."""
    async with gateway_running(config(browser)) as gateway:
        page = await opened_with_a_token(browser, gateway)
        await sign_in(browser, time.time() + 1200)
        end_tokens(gateway)
        await eventually(lambda: was_told(page, "token_expired"))
        await gateway.post("private", "1")
        await eventually(lambda: has(page, [0, 1]))
        await gateway.post("private", "2")
        await eventually(lambda: has(page, [0, 1, 2]))
        assert await gateway.metric('disconnects_total{reason="token_expired"}') == 1
        assert await refused(gateway, "invalid_token") == 0


async def test_an_expired_cookie_ends_it_and_the_page_goes_on_by_the_last_id(browser: Browser) -> None:
    """An expired token is let in again, or a page that signs in later has lost what came meanwhile."""
    async with gateway_running(config(browser)) as gateway:
        page = await opened_with_a_token(browser, gateway)
        await sign_in(browser, time.time() - 1)
        end_tokens(gateway)
        await eventually(lambda: was_told(page, "token_expired"))
        await eventually(lambda: is_in_state(page, CLOSED))
        assert await refused(gateway, "invalid_token") == 1
        await gateway.post("private", "1")
        await sign_in(browser)
        last = await page.evaluate("last")
        await listen(page, url(gateway, f"/events/private?lastEventId={last}"), withCredentials=True)
        await eventually(lambda: has(page, [1]))


DROPS = 5


async def test_drops_while_events_flow_lose_and_repeat_nothing(browser: Browser) -> None:
    """A cut connection costs a page events, brings some twice, or out of order."""
    kept = {"history": {"events": 100_000}}
    over = config(browser, timeouts={"retry": "100ms"}, channels={"orders": kept, "stock": kept})
    async with gateway_running(over) as gateway:
        page = await browser.page(APP)
        await listen(page, url(gateway, "/events?channel=orders,stock"))
        await eventually(lambda: gateway.daemon.streams.active)
        published: list[object] = []
        enough = asyncio.Event()

        async def publish() -> None:
            while not enough.is_set():
                number = len(published)
                published.append(number)
                await gateway.post(("orders", "stock")[number % 2], str(number))
                await asyncio.sleep(0.005)  # a slow page must not fall behind for good

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            for _ in range(DROPS):
                await drop(gateway, page)
            enough.set()
        await gateway.post("orders", '"end"')
        await eventually(lambda: ends(page, "end"))
        assert await got(page) == [*published, "end"]
        assert await gateway.metric("connections_total") == DROPS + 1


async def drop(gateway: Gateway, page: Page) -> None:
    """Cut the page's stream in the middle of what it brings."""
    await eventually(lambda: gateway.daemon.streams.active)
    await page.wait_for_function("(before) => got.length > before", arg=len(await got(page)))
    sever(gateway)
    await eventually(lambda: not gateway.daemon.streams.active)


async def ends(page: Page, wanted: object) -> bool:
    return (await got(page))[-1:] == [wanted]


TABS = 8
SOCKETS = 6
"""How many connections Chromium opens to one host and port over HTTP/1.1."""


async def tabs(browser: Browser, address: str, **options: Any) -> list[Page]:
    """Open tabs on two origins of one site, with a stream each."""
    pages = [await browser.page((APP, SISTER)[number % 2]) for number in range(TABS)]
    for page in pages:
        await listen(page, address, **options)
    return pages


async def readers(pages: list[Page], wanted: list[object]) -> list[Page]:
    """Return the tabs that got just this."""
    return [page for page in pages if await has(page, wanted)]


async def are_readers(pages: list[Page], wanted: list[object], number: int) -> bool:
    return len(await readers(pages, wanted)) == number


async def is_count(gateway: Gateway, metric: str, number: int) -> bool:
    return await gateway.metric(metric) == number


async def test_of_eight_tabs_six_are_live_and_the_others_wait_for_them(browser: Browser) -> None:
    """What docs/http.md says of tabs is wrong: waiting ones fail, or do not get in when others close."""
    async with gateway_running(config(browser)) as gateway:
        pages = await tabs(browser, url(gateway, "/events/orders"))
        await eventually(lambda: len(gateway.daemon.streams.active) == SOCKETS)
        await gateway.post("orders", "0")
        await eventually(lambda: are_readers(pages, [0], SOCKETS))
        live = await readers(pages, [0])
        waiting = [page for page in pages if page not in live]
        for page in waiting:
            assert await page.evaluate("source.readyState") == CONNECTING
        assert await gateway.metric("connections_total") == SOCKETS
        for page in live[:2]:
            await page.close()
        await eventually(lambda: is_count(gateway, "connections_total", TABS))
        await gateway.post("orders", "1")
        await eventually(lambda: are_readers(waiting, [1], 2))
        await eventually(lambda: are_readers(live[2:], [0, 1], SOCKETS - 2))


LIMIT = 3


async def test_tabs_beyond_the_limit_of_a_user_come_back_until_there_is_room(browser: Browser) -> None:
    """A tab too many closes for good, or stays out when one of the user's other tabs has gone."""
    over = config(browser, limits={"connections_per_user": LIMIT})
    async with gateway_running(over) as gateway:
        await sign_in(browser)
        pages = await tabs(browser, url(gateway, "/events/private"), withCredentials=True)
        await eventually(lambda: is_count(gateway, "connections_total", LIMIT))
        await gateway.post("private", "0")
        await eventually(lambda: are_readers(pages, [0], LIMIT))
        live = await readers(pages, [0])
        others = [page for page in pages if page not in live]
        for page in others:
            await page.wait_for_function("told.filter((reason) => reason === 'user_limit').length >= 2")
        await live.pop().close()
        await eventually(lambda: is_count(gateway, "connections_total", LIMIT + 1))
        await gateway.post("private", "1")
        await eventually(lambda: are_readers(others, [1], 1))
        await eventually(lambda: are_readers(live, [0, 1], LIMIT - 1))
        assert not any([await is_in_state(page, CLOSED) for page in others])
