"""One client that asks for as much as it may: what others get, and what it costs (guarantees 5 and 6)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gateway.broker.base import Broker
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.config.model.config import PoolConfig
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, EventId, Retention
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.eventsource import Stream
from tests.support.node import Node
from tests.support.redis import redis_server

pytestmark = pytest.mark.extended

CHANNELS, EVENTS, PAYLOAD = 50, 1000, b'"' + b"x" * 1000 + b'"'
GREEDY, OTHER = "127.0.0.1", "127.0.0.2"
PER_SECOND = 50
REQUESTS = 300
PATIENCE = 2 * PER_SECOND
"""Requests of the flood within which another client must be served: those of two seconds, were nothing late."""

GROWN = 120 << 20


@pytest.fixture(params=["redis", "sqlite"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    """A gateway whose log holds 50 MB."""
    with contextlib.ExitStack() as cleanup:
        broker: Broker
        if request.param == "redis":
            url = cleanup.enter_context(redis_server()).url
            broker = RedisBroker(
                url,
                prefix="sse",
                pool_limits=PoolConfig.model_validate({}),
                timeout=SAFETY_SECONDS,
                clock=unix_ms,
            )
        else:
            file = tmp_path / "log.db"
            url = f"sqlite:///{file}"
            broker = SqliteBroker(file, clock=unix_ms)
        await broker.start()
        keep = Retention(EVENTS)
        for _ in range(EVENTS // 10):
            for number in range(CHANNELS):
                await broker.append([Draft(f"c{number}", PAYLOAD, unix_ms(), keep) for _ in range(10)])
        await broker.close()
        config: dict[str, Any] = {
            "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
            "channels": {
                f"c{number}": {
                    "access": "public",
                    "from": [{"source": "hooks", "topic": f"c{number}"}],
                    "history": {"events": EVENTS},
                }
                for number in range(CHANNELS)
            },
            "broker": {"url": url},
        }
        node = Node(tmp_path, config)
        await node.start()
        try:
            yield node
        finally:
            await node.kill()


def memory(node: Node, which: str) -> int:
    """Return a figure of the process's memory, in bytes."""
    lines = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


async def once(node: Node, query: str, address: str, **headers: str) -> list[str]:
    """Open a stream and return the ids of its events once one came."""
    stream = await Stream.open(node.port, f"/events?{query}", headers, source=address)
    try:
        async with safety_net():
            while not [message for message in stream.messages if message.type == "message"]:
                assert await stream.read(), stream.body
        return [message.id for message in stream.messages if message.type == "message"]
    finally:
        stream.writer.close()


async def test_floods_of_last_leave_room_for_others(node: Node) -> None:
    """Requests for last=N on many channels cost a bounded amount, and others are served meanwhile."""
    sent = 0
    before = memory(node, "VmRSS:")
    numbers = count(1)

    async def greedy(number: int) -> None:
        channels = "&".join(f"channel=c{each}" for each in range(20 + number % 31))
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            stream = await Stream.open(node.port, f"/events?{channels}&last={EVENTS - number}", source=GREEDY)
            await stream.read()
            stream.writer.close()

    async def leaves(number: int) -> None:
        channels = "&".join(f"channel=c{each}" for each in range(20 + number % 31))
        _, writer = await asyncio.open_connection("127.0.0.1", node.port, local_addr=(GREEDY, 0))
        writer.write(f"GET /events?{channels}&last={EVENTS - number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async def flood() -> None:
        nonlocal sent
        async with asyncio.TaskGroup() as group:
            for sent in range(REQUESTS):
                group.create_task(greedy(next(numbers)) if sent % 2 else leaves(next(numbers)))
                await asyncio.sleep(1 / PER_SECOND)

    (oldest,) = (await once(node, "channel=c1&last=1", OTHER))[-1:]
    id = EventId.parse(oldest)
    assert id is not None
    flooding = asyncio.create_task(flood())
    served = []
    while not flooding.done():
        began = sent
        assert await once(node, "channel=c1&last=1", OTHER) == [oldest]
        assert await once(node, "channel=c2", OTHER, **{"Last-Event-ID": str(EventId(id.ms - 1000, 0))})
        served.append(sent - began)
        await asyncio.sleep(0.05)
    await flooding
    assert max(served) < PATIENCE, served
    assert memory(node, "VmHWM:") - before < GROWN
