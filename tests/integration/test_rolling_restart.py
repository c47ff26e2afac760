"""Three nodes behind a real balancer are restarted one after the other, as a deployment does it."""

import asyncio
import signal
from collections import Counter
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

pytestmark = [pytest.mark.extended, pytest.mark.timeout(1200)]  # a safety net like all deadlines

CLIENTS = 3000
CHANNELS = ("orders", "stock", "news")
PACE = 1.0
"""Seconds between two events of a channel."""

RETRY_MS = 1000
"""`timeouts.retry`; clients of a node that goes are told half of it to one and a half."""


def config(url: str) -> dict[str, Any]:
    return {
        "broker": {"url": url, "timeout": "30s"},
        # The balancer looks five times a second, and the last bytes have a fifth of `drain`: both are long
        # on any machine.
        "timeouts": {"pre_drain": "5s", "drain": "20s", "retry": f"{RETRY_MS}ms"},
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


async def test_a_rolling_restart_loses_and_repeats_nothing(tmp_path: Path, redis: RedisServer) -> None:
    """An update that is a visible outage: lost events, refused clients, or all of them told to come at once."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(3)]
    browsers: list[Browser] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        with haproxy_running(nodes) as balancer:
            browsers += [Browser(n, (CHANNELS[n % 3],), balancer.port) for n in range(CLIENTS)]
            await open_all(browsers)
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
                send, ending = webhook(session, [balancer]), asyncio.Event()
                tasks += [asyncio.create_task(publish(channel, send, ending)) for channel in CHANNELS]
                for node in nodes:
                    await eventually(balancer.sees_all)
                    for browser in browsers:
                        browser.closed.clear()
                    await restart(node)
                    await eventually(lambda: all(browser.is_open or browser.odd for browser in browsers))
                    told = [each for browser in browsers for each in browser.closed]
                    assert len(told) > CLIENTS / 6, "the balancer spread the streams over the nodes"
                    assert {reason for reason, _ in told} == {"draining"}
                    delays = [delay for _, delay in told if delay is not None]
                    assert len(delays) == len(told), "each is told when to come back"
                    assert 0.5 * RETRY_MS <= min(delays) <= max(delays) <= 1.5 * RETRY_MS
                    assert max(Counter(delays).values()) < len(delays) / 20, "and not all the same"
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


def _is_at_the_end(browser: Browser) -> bool:
    return any(message.type == "message" and message.json["payload"] == END for message in browser.seen[-3:])
