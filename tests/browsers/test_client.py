"""The client in one tab of each browser, against a gateway of another origin; natively the same where it can."""

from functools import partial
from pathlib import Path

import pytest

from bench.process import free_port
from tests.browsers.setting import (
    APP,
    HOST,
    NATIVE,
    OURS,
    SOON,
    config,
    documented,
    is_open,
    start,
    token,
)
from tests.support.browser import CLOSED
from tests.support.browsers.listener import connect, have, listen, ready_state, state
from tests.support.browsers.site import Site
from tests.support.browsers.tab import Engine, Profile, Tab
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = [pytest.mark.extended, pytest.mark.asyncio(loop_scope="session")]

SET_COOKIE = "(token) => { document.cookie = `token=${token}; domain=example.localhost; path=/`; }"


@pytest.mark.parametrize("kind", [NATIVE, OURS])
async def test_a_cookie_opens_a_stream_of_another_origin(profile: Profile, site: Site, kind: str) -> None:
    """The cookie of the site is not sent with it, or is where nobody said so, or the answer may not be read."""
    async with gateway_running(config(site)) as gateway:
        base = f"http://{HOST}:{gateway.port}"
        tab = await profile.tab(site.origin(APP))
        await tab.evaluate(SET_COOKIE, token())
        await start(kind, tab, base, "private")
        await eventually(lambda: gateway.metric('refused_total{reason="missing_token"}'))
        await start(kind, tab, base, "private", credentials="include")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("private", "1")
        await eventually(lambda: have([tab], [1]))
        assert await gateway.metric('refused_total{reason="missing_token"}') == 1


async def test_nothing_is_lost_while_the_gateway_restarts(
    profile: Profile, site: Site, tmp_path: Path
) -> None:
    """What was published on both sides of a restart is missing, or there twice, or nobody comes back."""
    over = _lasting(site, tmp_path)
    tab = await profile.tab(site.origin())
    async with gateway_running(over) as gateway:
        await start(OURS, tab, gateway.url, "orders")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
    await eventually(lambda: is_in(tab, "waiting network"))  # it was refused
    async with gateway_running(over) as gateway:
        await gateway.post("orders", "2")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "3")
        await eventually(lambda: have([tab], [1, 2, 3]))


async def test_a_native_stream_over_a_restart(
    engine: Engine, profile: Profile, site: Site, tmp_path: Path
) -> None:
    """A page does not come back by itself where docs say so, or what docs say to do then loses an event."""
    over = _lasting(site, tmp_path)
    tab = await profile.tab(site.origin())
    async with gateway_running(over) as gateway:
        await start(NATIVE, tab, gateway.url, "orders")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
        await tab.evaluate("() => { window.errors = 0; source.onerror = () => { errors += 1; }; }")
    gives_up = documented(engine, "refused, of another origin") == "gives up"
    await eventually(lambda: tab.evaluate("() => source.readyState === 2 || errors > 2"))
    assert (await ready_state(tab) == CLOSED) == gives_up
    async with gateway_running(over) as gateway:
        await gateway.post("orders", "2")
        if gives_up:
            last = await tab.evaluate("() => last")
            await listen(tab, f"{gateway.url}/events/orders?lastEventId={last}")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "3")
        await eventually(lambda: have([tab], [2, 3] if gives_up else [1, 2, 3]))


def _lasting(site: Site, folder: Path) -> dict[str, object]:
    """Return a configuration whose port and log are there again after a restart."""
    listening = {"listen": f"127.0.0.1:{free_port()}"}
    lasting: dict[str, object] = config(site, server=listening, broker={"url": f"sqlite:///{folder}/log"})
    return lasting


async def test_a_token_that_is_refused_is_asked_for_once_more(profile: Profile, site: Site) -> None:
    """A page whose token expired while it slept is out for good, or hammers the gateway with it."""
    async with gateway_running(config(site)) as gateway:
        tab = await profile.tab(site.origin())
        old, new = token(-10), token()
        await connect(tab, gateway.url, "private", tokens=[old, new])
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("private", "1")
        await eventually(lambda: have([tab], [1]))
        assert await tab.evaluate("() => asked") == [None, old]
        await connect(tab, gateway.url, "private", tokens=[old, old])
        await eventually(lambda: is_in(tab, "closed invalid_token"))
        assert await tab.evaluate("() => asked") == [None, old]


async def test_where_fetch_cannot_stream(profile: Profile, site: Site) -> None:
    """Without streaming fetch the client brings nothing, or is refused its ticket, or begins anew after a cut."""
    async with gateway_running(config(site, auth={"tickets": {}})) as gateway:
        tab = await profile.tab(site.origin())
        await connect(tab, gateway.url, "private", tokens=[token()], transport="eventsource", **SOON)
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("private", "1")
        await eventually(lambda: have([tab], [1]))
        for stream in list(gateway.daemon.streams.active):
            stream.transport.abort()
        await gateway.post("private", "2")
        await eventually(lambda: have([tab], [1, 2]))


async def test_a_page_that_went_away_and_came_back_has_everything_once(
    engine: Engine, profile: Profile, site: Site
) -> None:
    """A page in the back/forward cache holds a connection, or the client bars it from there, or events are lost."""
    async with gateway_running(config(site)) as gateway:
        tab = await profile.tab(site.origin())
        await connect(tab, gateway.url, "orders")
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
        for number in (2, 3):
            await (tab.open(site.origin() + "/away") if number == 2 else tab.forward())
            await eventually(lambda: not gateway.daemon.streams.active)
            await gateway.post("orders", str(number))
            await tab.back()
            if not engine.keeps_pages_with_requests:
                assert await tab.evaluate("() => typeof stream") == "undefined"
                return
            await eventually(partial(have, [tab], list(range(1, number + 1))))
        assert await gateway.metric("connections_total") == 3
        assert await tab.noise() == []


async def test_what_was_published_while_offline_comes_once(
    engine: Engine, profile: Profile, site: Site
) -> None:
    """A page goes on trying without a network, does not notice it when it is back, or shows old figures."""
    if not engine.can_go_offline:
        return  # what is left of the test is that of the restart
    async with gateway_running(config(site)) as gateway:
        tab = await profile.tab(site.origin())
        await connect(tab, gateway.url, "orders", **SOON)
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
        await profile.go_offline()
        await eventually(lambda: not gateway.daemon.streams.active)
        await eventually(lambda: is_in(tab, "offline offline"))
        await gateway.post("orders", "2")
        await profile.go_online()
        await eventually(lambda: have([tab], [1, 2]))


async def test_a_page_that_is_looked_at_again_comes_back_soon(
    engine: Engine, profile: Profile, site: Site
) -> None:
    """Somebody looks at a page that waits for its next attempt, and sees old figures until that."""
    over = config(site, server={"listen": f"127.0.0.1:{free_port()}"})
    tab = await profile.tab(site.origin())
    # Failures one upon the other, and then a wait of minutes, as after a long outage.
    await tab.evaluate("() => { Math.random = () => 0; }")
    base = f"http://{over['server']['listen']}"
    await connect(tab, base, "orders", minDelay=100, maxDelay=1e9)
    await eventually(lambda: tab.evaluate("() => states.length > 40"))
    await tab.evaluate("() => { Math.random = () => 0.5; }")
    await eventually(lambda: tab.evaluate("() => states.at(-1).delay > 60_000"))
    other = await profile.tab(site.origin())
    if engine.can_hide:
        await eventually(lambda: tab.evaluate("() => document.hidden"))
    async with gateway_running(over) as gateway:
        assert await state(tab) == "waiting network"
        if engine.can_hide:
            await tab.show()
            await eventually(lambda: other.evaluate("() => document.hidden"))
        else:  # what the browser would tell it
            await tab.evaluate("() => { document.dispatchEvent(new Event('visibilitychange')); }")
        await eventually(lambda: is_in(tab, "open"))
        assert is_open(gateway, 1)


async def test_a_console_stays_empty(profile: Profile, site: Site) -> None:
    """Ordinary life (events, maximum age, drain, a stream that is closed) fills the consoles of users."""
    async with gateway_running(config(site, timeouts={"connection": "1s"})) as gateway:
        tab = await profile.tab(site.origin())
        await connect(tab, gateway.url, "orders", "stock", **SOON)
        await eventually(lambda: gateway.daemon.streams.active)
        await gateway.post("orders", "1")
        await eventually(lambda: came_back(gateway))
        await gateway.post("stock", "2")
        await eventually(lambda: have([tab], [1, 2]))
        await tab.evaluate("() => stream.close()")
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await state(tab) == "closed closed"
        assert await tab.noise() == []


async def came_back(gateway: Gateway) -> bool:
    return await gateway.metric("connections_total") > 2


async def is_in(tab: Tab, wanted: str) -> bool:
    return await state(tab) == wanted
