"""Streams on which nothing happens: heartbeats keep them alive, and a dead one is noticed by whoever can."""

import asyncio

import pytest

from tests.clients.catalog import CLIENTS, EVENTS
from tests.clients.expected import check, expected
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, PATH, WHOLE, all_of, outcome, publish_orders, settled, trying
from tests.clients.zoo import Client
from tests.support.gateway import gateway_running, merged

pytestmark = pytest.mark.extended

WATCHDOG = 5.0
"""Seconds without a byte after which clients give up, where they can be told; ours takes 2.5 heartbeats."""

CONFIG = merged(HOOKS, {"timeouts": {"heartbeat": "1500ms"}})


BEATS = 4
"""Heartbeats that are waited for: they take longer than any watchdog waits for a byte."""

GRACE = 1.0
"""Seconds for those that notice nothing to show that they do, once the others have."""


def beats(client: Client) -> int:
    """Return how many heartbeats went through on the first connection."""
    answered = client.tap.lines[0].answered
    return answered.count(b"\n:\n") + answered.count(b"event: stream.heartbeat\n")  # ours asks for those


def heard(client: Client) -> str:
    """Return what a client gave its caller while there were only heartbeats."""
    if client.is_over or len(client.tap.lines) > 1:
        return "reconnects"
    others = [told for told in client.events if not told.is_own]
    return f"{len(others)} empty events" if others else "quiet"


def is_past(client: Client) -> bool:
    """Tell whether it lived through the heartbeats, or did not."""
    return beats(client) >= BEATS or len(client.tap.lines) > 1 or client.is_over


async def test_heartbeats_keep_a_stream_alive() -> None:
    """An idle page reconnects all the time, or is given events that nobody published; or a dead stream stays."""
    async with gateway_running(CONFIG) as gateway:
        taps = {name: Tap(gateway.port) for name in CLIENTS}
        async with trying(taps, watchdog=WATCHDOG) as clients:
            await all_of(clients.values(), is_past)
            check("heartbeats", {name: heard(client) for name, client in clients.items()})
            for tap in taps.values():
                tap.die()
            await publish_orders(gateway, [1])
            notice = [client for name, client in clients.items() if expected("dead", name) == WHOLE]
            await settled(notice, 1)
            await asyncio.sleep(GRACE)
            check("dead", {name: outcome(client, [1]) for name, client in clients.items()})


async def test_heartbeats_may_be_events() -> None:
    """A page that asks for them gets them as something else than ``stream.heartbeat``, or not at all."""
    async with gateway_running(merged(HOOKS, {"timeouts": {"heartbeat": "300ms"}})) as gateway:
        taps = {name: Tap(gateway.port) for name in EVENTS}
        async with trying(taps, f"{PATH}&heartbeat=event") as clients:
            await all_of(
                clients.values(),
                lambda client: [told.type for told in client.events].count("stream.heartbeat") >= BEATS,
            )
            check("heartbeats as events", {name: heard(client) for name, client in clients.items()})
