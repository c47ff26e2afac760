"""Streams that the gateway ends, or cannot continue: drain, a kill, maximum age, gaps, overload."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.clients.catalog import CLIENTS
from tests.clients.expected import check
from tests.clients.tap import Tap
from tests.clients.trial import HOOKS, all_of, outcome, publish_orders, settled, trying
from tests.clients.zoo import Client
from tests.support.gateway import BASE, gateway_running, merged
from tests.support.node import Node

pytestmark = pytest.mark.extended


@dataclass(frozen=True)
class At:
    """A gateway of another process."""

    url: str
    session: ClientSession


def taps_to(port: int) -> dict[str, Tap]:
    """Return a tap for each client."""
    return {name: Tap(port) for name in CLIENTS}


def asked_in_vain(client: Client) -> bool:
    """Tell whether it asked while nobody was there to answer, or will not ask any more."""
    return client.is_over or any(not line.answered for line in client.tap.lines)


async def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    """The gateway drains, is away, and comes back: a rolling restart is seen by pages."""
    config = merged(HOOKS, {"broker": {"url": f"sqlite:///{tmp_path}/log.db"}})
    async with gateway_running(config) as old:
        taps = taps_to(old.port)
        async with trying(taps) as clients:
            await publish_orders(old, [1])
            await settled(clients.values(), 1)
            await old.daemon.stop()
            await all_of(clients.values(), asked_in_vain)
            async with gateway_running(config) as new:
                await publish_orders(new, [2, 3])
                for tap in taps.values():
                    tap.target = new.port
                await settled(clients.values(), 3)
                await publish_orders(new, [4])
                await settled(clients.values(), 4)
                check("drain", {name: outcome(client, range(1, 5)) for name, client in clients.items()})
            assert all(b'"reason":"draining"' in tap.lines[0].answered for tap in taps.values())


async def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    """The gateway's process dies without a word, and another one takes up its log: streams are cut as they are."""
    config = merged(merged(BASE, HOOKS), {"broker": {"url": f"sqlite:///{tmp_path}/log.db"}})
    node = Node(tmp_path, config)
    try:
        await node.start()
        taps = taps_to(node.port)
        async with ClientSession() as session, trying(taps) as clients:
            there = At(f"http://127.0.0.1:{node.port}", session)
            await publish_orders(there, [1, 2])
            await settled(clients.values(), 2)
            await node.kill()
            await all_of(clients.values(), asked_in_vain)
            await node.start()
            await publish_orders(there, [3, 4])
            await settled(clients.values(), 4)
            await publish_orders(there, [5])
            await settled(clients.values(), 5)
            check("kill", {name: outcome(client, range(1, 6)) for name, client in clients.items()})
    finally:
        await node.kill()


async def test_the_maximum_age_is_not_seen() -> None:
    """A stream is ended for its age, again and again, while events come."""
    kept = {"orders": {"history": {"events": 100_000}}}  # however long a client is away
    config = merged(HOOKS, {"timeouts": {"connection": "1s"}, "channels": kept})
    async with gateway_running(config) as gateway, trying(taps_to(gateway.port)) as clients:
        number = 0
        enough = asyncio.Event()

        async def publish() -> None:
            nonlocal number
            while not enough.is_set():
                await publish_orders(gateway, [number := number + 1])
                await asyncio.sleep(0.03)

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            await all_of(clients.values(), lambda client: client.is_over or len(client.tap.lines) >= 3)
            enough.set()
        await publish_orders(gateway, [number + 1])
        await settled(clients.values(), number + 1)
        published = range(1, number + 2)
        check("age", {name: outcome(client, published) for name, client in clients.items()})


async def test_a_gap_is_told() -> None:
    """What is no longer in history when a client comes back is missing without a word."""
    config = merged(HOOKS, {"channels": {"orders": {"history": {"events": 5}}}})
    async with gateway_running(config) as gateway:
        taps = taps_to(gateway.port)
        async with trying(taps) as clients:
            await publish_orders(gateway, [1])
            await settled(clients.values(), 1)
            for tap in taps.values():
                tap.shut()
            await publish_orders(gateway, range(2, 31))
            for tap in taps.values():
                await tap.open()
            await settled(clients.values(), 30)
            check("gap", {name: outcome(client, range(1, 31)) for name, client in clients.items()})


async def test_overload_is_waited_for() -> None:
    """A page that is told to come back loses its place in the stream, or does not come."""
    async with gateway_running(HOOKS) as gateway:
        taps = taps_to(gateway.port)
        async with trying(taps) as clients:
            await publish_orders(gateway, [1])
            await settled(clients.values(), 1)
            await gateway.subscribe("/events/orders")
            await gateway.reconfigure({"limits": {"connections": 1}})
            for tap in taps.values():
                tap.cut()
            await publish_orders(gateway, [2])

            def was_refused(client: Client) -> bool:
                refusals = [line for line in client.tap.lines if b'"reason":"overloaded"' in line.answered]
                return client.is_over or len(refusals) > 1

            await all_of(clients.values(), was_refused)
            await gateway.reconfigure({"limits": {"connections": 100}})
            await settled(clients.values(), 2)
            await publish_orders(gateway, [3])
            await settled(clients.values(), 3)
            check("overload", {name: outcome(client, range(1, 4)) for name, client in clients.items()})
