"""What a native EventSource does, in each browser: the table of docs/browsers.md, measured."""

import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from tests.browsers.setting import documented
from tests.support.browser import CLOSED, CONNECTING, OPEN
from tests.support.browsers.listener import have, listen, ready_state
from tests.support.browsers.site import Site
from tests.support.browsers.tab import Engine, Profile, Tab
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

pytestmark = [pytest.mark.extended, pytest.mark.asyncio(loop_scope="session")]

HEADERS = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
STATUSES = (204, 401, 403, 404, 500, 503)
TABS, SOCKETS = 8, 6
SOURCES = """
(urls) => {
  window.all = urls.map((url) => new EventSource(url));
  for (const source of all) source.addEventListener("error", () => { source.errors = (source.errors ?? 0) + 1; });
}
"""


class Peer:
    """A server that answers as its paths say, and knows when it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = defaultdict(list)
        self.url = ""

    def delay(self, path: str) -> float:
        """Return the shortest time between two requests in seconds: a machine that is busy makes them longer."""
        times = self.asked[path]
        return min((second - first for first, second in itertools.pairwise(times)), default=0.0)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked[request.path].append(time.monotonic())
        word = request.path.rpartition("/")[2]
        is_first = len(self.asked[request.path]) == 1
        if word == "page":
            return web.Response(text="<!doctype html>", content_type="text/html")
        if word == "redirect":
            return web.Response(status=307, headers={**HEADERS, "Location": "/target"})
        if word == "type" and not is_first:
            return web.Response(text="data: 1\n\n", headers=HEADERS)
        if word.isdigit() and not is_first:
            return web.Response(status=int(word), headers=HEADERS)
        answer = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n" if word in {"end", "cut", "target"} else b"retry: 100\ndata: 1\n\n")
        if word == "cut" and request.transport is not None:
            request.transport.abort()
        return answer


@pytest_asyncio.fixture(loop_scope="session")
async def peer() -> AsyncIterator[Peer]:
    """A server whose answers are not the gateway's."""
    made = Peer()
    async with serving(made.handle) as made.url:
        yield made


async def agree(engine: Engine, fact: str, measure: Callable[[], str]) -> None:
    """Wait until what is measured is what is documented."""
    wanted = documented(engine, fact)
    try:
        await eventually(lambda: measure() == wanted)
    except TimeoutError:
        raise AssertionError(f"{engine.title}, {fact}: {measure()!r} and not {wanted!r}") from None


async def test_when_it_comes_back(engine: Engine, profile: Profile, site: Site, peer: Peer) -> None:
    """The delays that `timeouts.retry` rests on are not these."""
    tab = await profile.tab(site.origin())
    await tab.evaluate(SOURCES, [f"{peer.url}/{path}" for path in ("end", "cut", "short", "redirect")])
    await agree(engine, "`retry: 100` means", lambda: _milliseconds(peer.delay("/short")))
    await agree(engine, "waits where no `retry:` was sent", lambda: f"{peer.delay('/end'):.0f} s")
    await agree(engine, "likewise after a cut", lambda: f"{peer.delay('/cut'):.0f} s")
    await eventually(lambda: len(peer.asked["/target"]) > 1)
    await agree(engine, "after a 307 it reconnects", lambda: _redirected(peer))


def _milliseconds(delay: float) -> str:
    return f"{round(delay, 1) * 1000:.0f} ms"


def _redirected(peer: Peer) -> str:
    return "at the target" if len(peer.asked["/redirect"]) == 1 else "where it was sent from"


async def test_what_ends_it(profile: Profile, site: Site, peer: Peer) -> None:
    """A status other than 200 is survived, so that refusals could use it; or one that ended it is asked for again."""
    tab = await profile.tab(site.origin())
    words = [*map(str, STATUSES), "type"]
    await tab.evaluate(SOURCES, [f"{peer.url}/{word}" for word in words])
    await eventually(lambda: tab.evaluate("() => all.every(({ readyState }) => readyState === 2)"))
    assert {path: len(times) for path, times in peer.asked.items()} == {f"/{word}": 2 for word in words}


async def test_what_a_server_that_is_gone_does_to_it(engine: Engine, profile: Profile, site: Site) -> None:
    """A restart of the gateway ends the streams of pages, and the docs do not say of which."""
    peer = Peer()
    async with serving(peer.handle) as url:
        own, other = await profile.tab(f"{url}/page"), await profile.tab(site.origin())
        for tab in (own, other):
            await tab.evaluate(SOURCES, [f"{url}/short", "http://nowhere.invalid/"])
            await eventually(lambda: len(peer.asked["/short"]) > 2)
            peer.asked.clear()
    for tab in (own, other):
        await tab.evaluate("() => { all[0].errors = 0; }")
    for tab, fact in ((own, "refused, of the page's origin"), (other, "refused, of another origin")):
        assert await _what_becomes_of(tab, 0) == documented(engine, fact), fact
    assert await _what_becomes_of(other, 1) == documented(engine, "no such name")


async def _what_becomes_of(tab: Tab, number: int) -> str:
    """Tell whether a source gives up; one that failed and is not closed then comes back."""
    # The first error of the one that streamed is its end, and the second that nobody is there any more.
    over = "(number) => all[number].readyState === 2 || all[number].errors > 1 - number"
    await eventually(lambda: tab.evaluate(over, number))
    state = await tab.evaluate("(number) => all[number].readyState", number)
    return "gives up" if state == CLOSED else "reconnects"


async def test_a_page_that_was_left_and_is_shown_again(engine: Engine, profile: Profile, site: Site) -> None:
    """What docs say of the back/forward cache is wrong, or events are lost over it."""
    over = {"cors": {"origins": [site.origin()]}, "timeouts": {"retry": "300ms"}}
    fact = documented(engine, "a page that is left with a stream")
    async with gateway_running(over) as gateway:
        tab = await profile.tab(site.origin())
        await listen(tab, f"{gateway.url}/events/orders")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
        await tab.open(site.origin() + "/away")
        if fact != "kept, and streams on":
            await eventually(lambda: not gateway.daemon.streams.active)
        await gateway.post("orders", "2")
        await tab.back()
        if fact == "not kept":
            assert await tab.evaluate("() => typeof got") == "undefined"
            return
        await gateway.post("orders", "3")
        await eventually(lambda: have([tab], [1, 2, 3]))
        assert await gateway.metric("connections_total") == (1 if fact == "kept, and streams on" else 2)


async def test_a_stream_of_a_browser_that_goes_offline(engine: Engine, profile: Profile, site: Site) -> None:
    """What docs say of going offline is wrong."""
    fact = documented(engine, "switched to offline mode")
    if not engine.can_go_offline:
        assert fact == "not possible"
        return
    assert fact == "the stream continues"
    async with gateway_running({"cors": {"origins": [site.origin()]}}) as gateway:
        tab = await profile.tab(site.origin())
        await listen(tab, f"{gateway.url}/events/orders")
        await eventually(lambda: gateway.daemon.streams.active)
        await profile.go_offline()
        assert not await tab.evaluate("() => navigator.onLine")
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))


async def test_the_seventh_stream_hangs(profile: Profile, site: Site) -> None:
    """What docs say of tabs over HTTP/1.1 is wrong: six stream, two wait, and one gets in when one goes."""
    async with gateway_running({"cors": {"origins": [site.origin()]}}) as gateway:
        tabs = [await profile.tab(site.origin()) for _ in range(TABS)]
        for tab in tabs:
            await listen(tab, f"{gateway.url}/events/orders")
        await eventually(lambda: _are_open(tabs, SOCKETS))
        states = [await ready_state(tab) for tab in tabs]
        assert sorted(states) == [CONNECTING] * (TABS - SOCKETS) + [OPEN] * SOCKETS
        await gateway.post("orders", "1")
        live = [tab for tab, state in zip(tabs, states, strict=True) if state == OPEN]
        waiting = [tab for tab in tabs if tab not in live]
        await eventually(lambda: have(live, [1]))
        assert await have(waiting, [])
        await live[0].close()
        await eventually(lambda: _are_open(waiting, 1))
        await gateway.post("orders", "2")
        await eventually(lambda: _has_one(waiting, [2]))
        assert await connections(gateway) == SOCKETS + 1


async def _are_open(tabs: list[Tab], count: int) -> bool:
    return [await ready_state(tab) for tab in tabs].count(OPEN) == count


async def _has_one(tabs: list[Tab], wanted: list[int]) -> bool:
    return [await have([tab], wanted) for tab in tabs].count(True) == 1


async def connections(gateway: Gateway) -> float:
    return await gateway.metric("connections_total")
