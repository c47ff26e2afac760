"""Streams on which nothing happens: heartbeats keep them alive, and a dead one is noticed by whoever can."""

import pytest

from tests.clients.catalog import CLIENTS, EVENTS
from tests.clients.expected import check, expected
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, PATH, all_of, numbers, outcome, publish_orders, trying
from tests.clients.zoo import Client
from tests.support.gateway import gateway_running, merged

pytestmark = pytest.mark.extended

WATCHDOG = 25.0
"""Seconds without a byte after which clients give up, where they can be told; ours takes 2.5 heartbeats."""

CONFIG = merged(HOOKS, {"timeouts": {"heartbeat": "10s"}})
"""A slow machine has the rest of the watchdog's time for a heartbeat."""

BEATS = 4
"""Heartbeats that are waited for: they take longer than any watchdog waits for a byte."""

LIVE, EVENT, DEAD = "live", "event", "dead"
"""Connections with heartbeats as comments, or as events, and those that go silent."""


def beats(client: Client) -> int:
    """Return how many heartbeats went through on the first connection."""
    answered = client.tap.lines[0].answered
    return answered.count(b"\n:\n") + answered.count(b"event: stream.heartbeat\n")  # ours asks for those


def heard(client: Client) -> str:
    """Return what became of a client's stream while there was one event, and then only heartbeats."""
    if client.is_over or len(client.tap.lines) > 1:
        return "reconnects"
    empty = sum(1 for told in client.events if not told.is_own) - 1
    return "quiet" if numbers(client) == [1] and not empty else f"{empty} empty events"


def told(client: Client) -> int:
    """Return how many heartbeats a client gave its caller."""
    return [event.type for event in client.events].count("stream.heartbeat")


def is_past(client: Client) -> bool:
    """Tell whether it lived through the heartbeats, or did not."""
    return beats(client) >= BEATS or len(client.tap.lines) > 1 or client.is_over


async def test_heartbeats_keep_a_stream_alive() -> None:
    """An idle page reconnects all the time, or is given events that nobody published; or a dead stream stays."""
    wanted = {LIVE: CLIENTS, EVENT: EVENTS, DEAD: CLIENTS}
    async with gateway_running(CONFIG) as gateway:
        taps = {(name, state): Tap(gateway.port) for state, names in wanted.items() for name in names}

        def path(key: tuple[str, str]) -> str:
            return f"{PATH}&heartbeat=event" if key[1] == EVENT else PATH

        async with trying(taps, path, watchdog=WATCHDOG) as clients:
            live, events, dead = (
                {name: client for (name, its), client in clients.items() if its == state} for state in wanted
            )
            for client in dead.values():
                client.tap.die()
            await publish_orders(gateway, [1])
            await all_of([*live.values(), *events.values()], is_past)
            await all_of(events.values(), lambda client: told(client) >= BEATS or heard(client) != "quiet")
            check("heartbeats", {name: heard(client) for name, client in live.items()})
            check("heartbeats as events", {name: heard(client) for name, client in events.items()})
            # By now those that lose it have lost it; the others may need longer on a slow machine.
            others = [client for name, client in dead.items() if expected("dead", name) != "lost 1"]
            await all_of(others, lambda client: outcome(client, [1]) == expected("dead", client.name))
            check("dead", {name: outcome(client, [1]) for name, client in dead.items()})
