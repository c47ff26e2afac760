"""Tabs of one browser that share the stream of one of them, or of a worker."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.process import free_port
from tests.browsers.setting import SOON, config, is_open, token
from tests.support.browsers.listener import connect, have, state
from tests.support.browsers.site import Site
from tests.support.browsers.tab import Engine, Profile, Tab
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = [pytest.mark.extended, pytest.mark.asyncio(loop_scope="session")]

PAGE, WORKER = "page", "worker"
"""Who leads: a page that imports the client from the gateway can have no worker, for that is of another origin."""

leaders = pytest.mark.parametrize("leader", [PAGE, WORKER])


async def several(profile: Profile, site: Site, count: int) -> list[Tab]:
    return [await profile.tab(site.origin()) for _ in range(count)]


async def share(tabs: list[Tab], base: str, leader: str, channel: str = "orders", **options: Any) -> None:
    client = "/client.js" if leader == WORKER else f"{base}/client.js"
    for tab in tabs:
        await connect(tab, base, channel, client=client, share=True, **{**SOON, **options})
    await eventually(lambda: are_in(tabs, "open"))


async def are_in(tabs: list[Tab], wanted: str) -> bool:
    return all([await state(tab) == wanted for tab in tabs])


async def connections(gateway: Gateway) -> float:
    return await gateway.metric("connections_total")


@leaders
async def test_eight_tabs_live_on_one_connection(profile: Profile, site: Site, leader: str) -> None:
    """A tab has no events, or has them twice, or each tab has a connection of its own."""
    async with gateway_running(config(site)) as gateway:
        tabs = await several(profile, site, 8)
        await share(tabs, gateway.url, leader)
        for number in range(5):
            await gateway.post("orders", str(number))
        await eventually(lambda: have(tabs, list(range(5))))
        assert await connections(gateway) == len(gateway.daemon.streams.active) == 1
        assert not any([await tab.noise() for tab in tabs])


@leaders
async def test_tabs_go_on_when_one_dies(engine: Engine, profile: Profile, site: Site, leader: str) -> None:
    """A crash of the tab that leads, or has the worker, costs the others an event, or brings one twice."""
    async with gateway_running(config(site)) as gateway:
        tabs = await several(profile, site, 4)
        await share(tabs, gateway.url, leader)
        sent = 0
        while len(tabs) > 1:  # the first leads, and then the next that asked for the lock
            await gateway.post("orders", str(sent))
            first, *tabs = tabs
            await (first.kill() if engine.can_kill else first.close())
            await gateway.post("orders", str(sent + 1))
            sent += 2
            await eventually(partial(have, tabs, list(range(sent))))
            await eventually(lambda: is_open(gateway, 1))
        if leader == PAGE:
            assert await connections(gateway) == 4


async def test_a_worker_leads_whichever_tab_is_closed(engine: Engine, profile: Profile, site: Site) -> None:
    """The stream is opened anew when a tab is closed, or goes on when all are."""
    async with gateway_running(config(site)) as gateway:
        tabs = await several(profile, site, 4)
        await share(tabs, gateway.url, WORKER)
        spare = await profile.tab("about:blank")
        for sent, tab in enumerate(tabs[:-1]):
            await tab.close()
            await gateway.post("orders", str(sent))
            await eventually(partial(have, tabs[sent + 1 :], list(range(sent + 1))))
        if engine.worker_stays:
            assert await connections(gateway) == 1
        await tabs[-1].close()
        await eventually(lambda: is_open(gateway, 0))
        await spare.close()


@leaders
async def test_tabs_lose_nothing_while_the_gateway_restarts(
    profile: Profile, site: Site, tmp_path: Path, leader: str
) -> None:
    """The tabs come back each on its own, or one of them has a hole or an event twice."""
    listening = {"listen": f"127.0.0.1:{free_port()}"}
    over = config(site, server=listening, broker={"url": f"sqlite:///{tmp_path}/log"})
    tabs = await several(profile, site, 3)
    async with gateway_running(over) as gateway:
        await share(tabs, gateway.url, leader)
        await gateway.post("orders", "1")
        await eventually(lambda: have(tabs, [1]))
    await eventually(lambda: are_in(tabs, "waiting network"))
    async with gateway_running(over) as gateway:
        await gateway.post("orders", "2")
        await eventually(lambda: is_open(gateway, 1))
        await gateway.post("orders", "3")
        await eventually(lambda: have(tabs, [1, 2, 3]))
        assert await connections(gateway) == 1


# A tab that was asked keeps the others from being asked for a second, which a slow machine may need longer than.
SLOW = """
() => {
  const { setTimeout } = window;
  window.setTimeout = (call, delay, ...given) => setTimeout(call, delay === 1_000 ? 60_000 : delay, ...given);
}
"""


@leaders
async def test_one_tab_is_asked_for_the_token(profile: Profile, site: Site, leader: str) -> None:
    """Each tab buys a token of its own where a tab leads, or a worker, which has none, gets none."""
    async with gateway_running(config(site)) as gateway:
        tabs = await several(profile, site, 3)
        for tab in tabs:
            await tab.evaluate(SLOW)
        old, new = token(-10), token()
        await share(tabs, gateway.url, leader, "private", tokens=[old, new])
        await gateway.post("private", "1")
        await eventually(lambda: have(tabs, [1]))
        asked = [await tab.evaluate("() => asked.length") for tab in tabs]
        assert sorted(asked) == [0, 0, 2] if leader == PAGE else sum(asked) == 2
        assert await connections(gateway) == 1


@leaders
async def test_the_first_tab_goes_away_and_comes_back(
    engine: Engine, profile: Profile, site: Site, leader: str
) -> None:
    """A tab that leads takes the stream with it into the back/forward cache, or misses what came meanwhile."""
    async with gateway_running(config(site)) as gateway:
        tabs = await several(profile, site, 2)
        await share(tabs, gateway.url, leader)
        await gateway.post("orders", "1")
        await eventually(lambda: have(tabs, [1]))
        first, second = tabs
        await first.open(site.origin() + "/away")
        await gateway.post("orders", "2")
        await eventually(lambda: have([second], [1, 2]))
        await first.back()
        if engine.keeps_pages_with_requests:
            await gateway.post("orders", "3")
            await eventually(lambda: have(tabs, [1, 2, 3]))
        await eventually(lambda: is_open(gateway, 1))


@leaders
async def test_the_only_tab_goes_away_and_comes_back(
    engine: Engine, profile: Profile, site: Site, leader: str
) -> None:
    """A worker whose tabs are all in the back/forward cache holds a connection, or has forgotten where they were."""
    async with gateway_running(config(site)) as gateway:
        tab = await profile.tab(site.origin())
        await share([tab], gateway.url, leader)
        await gateway.post("orders", "1")
        await eventually(lambda: have([tab], [1]))
        await tab.open(site.origin() + "/away")
        if leader == PAGE or engine.worker_says_goodbye:
            await eventually(lambda: is_open(gateway, 0))
        await gateway.post("orders", "2")
        await tab.back()
        if engine.keeps_pages_with_requests:
            await eventually(lambda: have([tab], [1, 2]))
            await eventually(lambda: is_open(gateway, 1))
