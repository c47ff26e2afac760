"""Three nodes behind a real balancer are restarted one after the other, as a deployment does it."""

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.checker import END, Send, judge, webhook
from tests.support.gateway import eventually
from tests.support.haproxy import haproxy_running
from tests.support.herd import Browser, open_all
from tests.support.node import Node, kill_all
from tests.support.redis import RedisServer

pytestmark = pytest.mark.extended

CLIENTS = 3000
CHANNELS = ("orders", "stock", "news")
PACE = 1.0
"""Seconds between two events of a channel: with all clients, 3,000 deliveries in each."""

DRAIN = 6.0
WINDOW = DRAIN / 4
"""Seconds in which reconnects are counted: so long that a stall of a loaded machine is no peak."""


def config(url: str) -> dict[str, Any]:
    return {
        "broker": {"url": url},
        "timeouts": {"pre_drain": "1s", "drain": f"{DRAIN:g}s", "retry": "1s"},
        "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
        "channels": {
            name: {"from": [{"source": "hooks", "topic": name}], "access": "public"} for name in CHANNELS
        },
    }


async def publish(channel: str, send: Send, ending: asyncio.Event) -> None:
    """Send number after number, each until it was accepted; at the end the last one."""
    number = 0
    while not ending.is_set():
        await send(channel, number)
        number += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(PACE):
                await ending.wait()
    await send(channel, END)


async def restart(node: Node) -> None:
    """Let it drain, and start it again. It must say that it was told in time, and told everybody in time."""
    before = len(node.lines())
    node.signal(signal.SIGTERM)
    assert await node.ended() == 0, node.log.read_text()[-3000:]
    lines = node.lines()[before:]
    phases = list(dict.fromkeys(line["phase"] for line in lines if line["event"] == "draining"))
    assert phases == ["pre_drain", "streams", "requests", "sources"]
    assert {line["reason"] for line in lines if line["event"] == "stream_closed"} == {"draining"}
    await node.start()


def peak(times: Sequence[float]) -> float:
    """Return the highest rate of all windows, by the mean rate over the drain."""
    most = max(sum(1 for time in times if first <= time < first + WINDOW) for first in times)
    return (most / WINDOW) / (len(times) / DRAIN)


async def test_a_rolling_restart_loses_and_repeats_nothing(tmp_path: Path, redis: RedisServer) -> None:
    """An update that is a visible outage: lost events, refused clients, or all of them back at once."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(3)]
    browsers: list[Browser] = []
    tasks: list[asyncio.Task[None]] = []
    peaks = []
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        with haproxy_running(nodes) as balancer:
            browsers += [Browser(n, (CHANNELS[n % 3],), balancer.port) for n in range(CLIENTS)]
            await open_all(browsers)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
                send, ending = webhook(session, [balancer]), asyncio.Event()
                tasks += [asyncio.create_task(publish(channel, send, ending)) for channel in CHANNELS]
                for node in nodes:
                    await eventually(balancer.sees_all)
                    known = {browser: len(browser.attempts) for browser in browsers}
                    await restart(node)
                    # The last ones that were told to come back may still wait for their time.
                    await asyncio.sleep(2)
                    back = [time for browser in browsers for time in browser.attempts[known[browser] :]]
                    assert len(back) > CLIENTS / 6, "the balancer spread the streams over the nodes"
                    peaks.append(peak(sorted(back)))
                ending.set()
                await asyncio.gather(*tasks)
                await eventually(lambda: all(_is_at_the_end(browser) for browser in browsers))
    finally:
        for task in tasks:
            task.cancel()
        for browser in browsers:
            browser.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await kill_all(nodes)
    assert not [browser.odd for browser in browsers if browser.odd], "a browser gives up at these"
    verdict = judge(browsers)
    assert verdict.is_clean, verdict
    assert not verdict.told, "nothing was missing, so no gap may be told"
    assert verdict.resumes >= CLIENTS
    assert Counter(peak < 2 for peak in peaks) == {True: 3}, peaks


def _is_at_the_end(browser: Browser) -> bool:
    last = browser.seen[-1]
    return last.type == "message" and last.json["payload"] == END
