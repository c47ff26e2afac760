"""Streams on which nothing happens: heartbeats keep them alive, and a dead one is noticed by whoever can."""

import asyncio

import pytest

from tests.clients.catalog import CLIENTS, EVENTS
from tests.clients.expected import check, expected
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, PATH, WHOLE, all_of, outcome, publish_orders, settled, trying
from tests.clients.zoo import Client
from tests.support.gateway import gateway_running, merged

WATCHDOG = 3.0
"""Seconds without a byte after which clients give up, where they can be told; ours takes 2.5 heartbeats."""

CONFIG = merged(HOOKS, {"timeouts": {"heartbeat": "1s"}})


BEATS = 5
"""Heartbeats that are waited for: they take longer than any watchdog waits for a byte."""


def beats(client: Client) -> int:
    """Return how many heartbeats went through on the first connection."""
    answered = client.tap.lines[0].answered
    return answered.count(b"\n:\n") + answered.count(b"event: stream.heartbeat\n")


def heard(client: Client) -> str:
    """Return what a client gave its caller while there were only heartbeats."""
    if client.is_over or len(client.tap.lines) > 1:
        return "reconnects"
    others = [told for told in client.events if not told.is_own]
    return f"{len(others)} empty events" if others else "quiet"


@pytest.mark.parametrize("as_events", [False, True], ids=["comments", "events"])
async def test_heartbeats_keep_a_stream_alive(as_events: bool) -> None:
    """An idle page reconnects all the time, or is given events that nobody published; or a dead stream stays."""
    async with gateway_running(CONFIG) as gateway:
        names = EVENTS if as_events else list(CLIENTS)
        taps = {name: Tap(gateway.port) for name in names}
        path = f"{PATH}&heartbeat=event" if as_events else PATH
        async with trying(taps, path, watchdog=WATCHDOG) as clients:
            await all_of(
                clients.values(),
                lambda client: beats(client) >= BEATS or len(client.tap.lines) > 1 or client.is_over,
            )
            found = {name: heard(client) for name, client in clients.items()}
            if as_events:
                for client in clients.values():
                    told = [told for told in client.events if told.type == "stream.heartbeat"]
                    assert len(told) >= BEATS - 1, client
                check("heartbeats as events", found)
                return
            check("heartbeats", found)
            for tap in taps.values():
                tap.die()
            await publish_orders(gateway, [1])
            notice = [client for name, client in clients.items() if expected("dead", name) == WHOLE]
            await settled(notice, 1)
            await asyncio.sleep(WATCHDOG)
            check("dead", {name: outcome(client, [1]) for name, client in clients.items()})
