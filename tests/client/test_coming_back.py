"""When our client comes back: backoff with full jitter, silence, restarts. Nothing is lost meanwhile."""

import bisect
import random
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import pytest

from gateway.streams.connection import StreamConnection
from tests.client.following import following
from tests.clients.tap import Tap, tapped
from tests.support.gateway import eventually, gateway_running
from tests.support.node import Node, kill_all

pytestmark = pytest.mark.extended

LUCK = 0.75


HEALTHY = 10_000
"""Milliseconds of a stream after which failures count anew."""


async def test_delays_double_up_to_the_longest_and_begin_anew_after_a_healthy_time() -> None:
    """Full jitter of min(max, base * 2^n); a stream of 10 s makes the next delay a short one."""
    delays = [round(window * LUCK) for window in (40, 80, 160, 320, 640, 1000, 1000, 40)]
    async with gateway_running({"timeouts": {"retry": "10ms"}}) as gateway:
        options = {"channels": ["orders"], "minDelay": 40, "maxDelay": 1000}
        async with following(gateway.url, options, luck=LUCK, clock=True) as told:
            for times, delay in enumerate(delays, 1):
                await told.until("open", times)
                if times == len(delays):
                    await told.later(HEALTHY)
                cut(gateway.daemon.streams.active)
                await told.until("waiting", times)
                await told.later(delay)
            await told.until("open", len(delays) + 1)
            assert told.delays == delays
            assert set(told.reasons) == {"network"}


def cut(streams: Iterable[StreamConnection]) -> None:
    for stream in list(streams):
        stream.abort("test")


async def test_the_retry_of_the_gateway_is_the_shortest_window() -> None:
    """timeouts.retry, told with stream.open, is where the doubling begins."""
    async with gateway_running({"timeouts": {"retry": "300ms"}}) as gateway:
        options = {"channels": ["orders"], "minDelay": 10, "maxDelay": 5000}
        async with following(gateway.url, options, luck=LUCK) as told:
            for times in (1, 2):
                await told.until("open", times)
                cut(gateway.daemon.streams.active)
            await told.until("open", 3)
            assert told.delays == [225, 450]


async def test_a_thousand_refused_clients_come_back_as_full_jitter_predicts() -> None:
    """200 + stream.close: each delay is the retry that it carries, plus an even draw from a window that doubles."""
    over = {"limits": {"connections": 1}, "timeouts": {"retry": "40ms"}}
    async with gateway_running(over) as gateway:
        holder = await gateway.subscribe("/events/orders")
        options = {"channels": ["orders"], "minDelay": 250, "maxDelay": 2000}
        async with following(gateway.url, options, count=1000, clock=True) as told:
            delays_of = told.delays_of
            for times in range(1, 6):
                await told.until("waiting", 1000 * times)
                await told.later(2_100)
            assert "closed" not in told.states
            assert set(told.reasons) == {"overloaded"}
            for number, window in enumerate((250, 500, 1000, 2000, 2000)):
                delays = sorted(each[number] for each in delays_of.values())
                assert distance(delays, expected(window)) < CRITICAL, f"delay {number} is not U(0, {window})"
            assert await gateway.metric('refused_total{reason="overloaded"}') >= 5000
        holder.close()


CRITICAL = 0.1
"""Of the Kolmogorov-Smirnov distance: for 1,000 and 20,000 draws, passed once in a hundred million times by chance.

The delays are those that the clients draw; no time passes by itself.
"""


def expected(window: int) -> list[float]:
    """Draw what must come: the gateway's own jitter of half of 40 ms, and full jitter on top."""
    draw = random.Random(1)
    return sorted(draw.uniform(20, 60) + draw.uniform(0, window) for _ in range(20_000))


def distance(one: list[int], other: list[float]) -> float:
    """Return the Kolmogorov-Smirnov distance of two sorted samples."""
    return max(
        abs(bisect.bisect_right(one, value) / len(one) - bisect.bisect_right(other, value) / len(other))
        for value in one
    )


async def test_a_connection_that_went_silent_is_left() -> None:
    """No byte for 2.5 heartbeats: cut, told as silence, and all that was published meanwhile arrives."""
    async with gateway_running({"timeouts": {"heartbeat": "1s", "retry": "50ms"}}) as gateway:
        tap = Tap(gateway.port)
        options = {"channels": ["orders"], "maxDelay": 200}
        async with (
            tapped(tap),
            following(f"http://127.0.0.1:{tap.port}", options, clock=True) as told,
        ):
            await told.until("open")
            await gateway.post("orders", "1")
            await eventually(lambda: told.events == [1])
            tap.die()
            await gateway.post("orders", "2")
            await told.later(2_400)
            assert told.states == ["connecting", "open"]
            await told.later(100)
            await told.until("waiting")
            await told.later(200)
            await told.until("open", 2)
            assert told.reasons == ["silence"]
            await gateway.post("orders", "3")
            await eventually(lambda: told.events == [1, 2, 3])


async def test_a_silence_within_its_heartbeats_is_none() -> None:
    """Heartbeats alone keep a stream: no reconnect, and no event comes of them."""
    async with (
        gateway_running({"timeouts": {"heartbeat": "300ms"}}) as gateway,
        following(gateway.url, {"channels": ["orders"]}, clock=True) as told,
    ):
        await told.until("open")
        for _ in range(5):
            await told.hears()
            await told.later(600)  # it waits for 750
        await gateway.post("orders", "1")
        await eventually(lambda: told.events == [1])
        assert told.states == ["connecting", "open"]


async def test_nobody_gives_up_while_the_gateway_is_away(tmp_path: Path) -> None:
    """A gateway that is killed and started again: all clients are back, and have every event once."""
    hook = {"hooks": {"type": "webhook", "verify": {"none": True}}}
    orders = {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}
    config = {
        "broker": {"url": f"sqlite:///{tmp_path / 'log.db'}"},
        "sources": hook,
        "channels": {"orders": orders},
        "timeouts": {"retry": "50ms"},
    }
    node = Node(tmp_path, config)
    url = f"http://127.0.0.1:{node.port}"

    async def post(body: str) -> None:
        hook = f"{url}/hooks/hooks?topic=orders"
        async with aiohttp.ClientSession() as session, session.post(hook, data=body) as answer:
            assert answer.status == 200

    try:
        await node.start()
        async with following(url, {"channels": ["orders"], "maxDelay": 1000}, count=50) as told:
            await told.until("open", 50)
            await post("1")
            await eventually(lambda: told.events == [1] * 50)
            await node.kill()
            await told.until("waiting", 150)  # they come in vain
            await node.start()
            await post("2")
            await eventually(lambda: sorted(told.events) == [1] * 50 + [2] * 50)
            assert "closed" not in told.states
    finally:
        await kill_all([node])
