"""A real Prometheus, two workers, real streams: what it says is what is there, also after a kill."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.observability.metrics.definitions import DEFINITIONS
from tests.deploy.test_dashboard import expressions
from tests.support.eventsource import Stream
from tests.support.gateway import eventually
from tests.support.node import Node
from tests.support.prometheus import Prometheus, prometheus_running
from tests.support.redis import RedisServer

pytestmark = [
    pytest.mark.extended,
    pytest.mark.timeout(1200),
]  # three servers that start, and a scrape every five seconds

STREAMS = 200
TOKEN = "t0ken-" * 4


class Clients:
    """Clients as browsers are: who loses the stream comes back. ``live`` is what they count themselves."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.live = 0
        self.opened = 0

    async def run(self) -> None:
        """Keep all of them going until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            try:
                stream = await Stream.open(self._port, "/events/orders")
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)
                continue
            try:
                if await stream.read() and stream.messages[0].type == "stream.open":
                    self.live += 1
                    self.opened += 1
                    try:
                        while await stream.read():
                            pass
                    finally:
                        self.live -= 1
            finally:
                stream.close()
            await asyncio.sleep(0.1)


class Scene:
    """Gateway, clients and Prometheus."""

    def __init__(self, node: Node, clients: Clients, prometheus: Prometheus) -> None:
        self.node = node
        self.clients = clients
        self.prometheus = prometheus

    async def status(self) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session,
            session.get(f"http://127.0.0.1:{self.node.admin}/status") as answer,
        ):
            return dict(await answer.json())

    async def all_say(self, streams: int) -> bool:
        """Tell whether clients, /status and Prometheus count the same."""
        told = await self.prometheus.query("sum(sse_gateway_active_connections)")
        active = (await self.status())["streams"]["active"]
        return told == [streams] and self.clients.live == active == streams


@asynccontextmanager
async def scene(folder: Path, redis: RedisServer) -> AsyncIterator[Scene]:
    node = Node(
        folder,
        {
            "server": {"workers": 2, "admin_token": TOKEN},
            "broker": {"url": f"sqlite:///{folder}/log.db"},
            "timeouts": {"drain": "2s", "retry": "1s"},
            "sources": {"app": {"type": "redis-pubsub", "url": redis.url, "timeout": "60s"}},
            "channels": {"orders": {"from": [{"source": "app", "topic": "orders"}], "access": "public"}},
        },
    )
    clients = Clients(node.port)
    try:
        await node.start()
        running = asyncio.create_task(clients.run())
        try:
            async with prometheus_running(f"127.0.0.1:{node.admin}", TOKEN) as prometheus:
                yield Scene(node, clients, prometheus)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        await node.kill()


async def test_all_count_the_same_also_after_a_worker_was_killed(tmp_path: Path, redis: RedisServer) -> None:
    """Autoscaling and alerts act upon these figures."""
    async with scene(tmp_path, redis) as all:
        prometheus = all.prometheus
        await eventually(lambda: all.all_say(STREAMS))
        await eventually(
            lambda: _says(prometheus, 'sse_gateway_channel_connections{channel="orders"}', STREAMS)
        )
        await eventually(lambda: _says(prometheus, "sse_gateway_workers", 2))
        victim = (await all.status())["workers"][0]
        assert 0 < victim["streams"] < STREAMS
        os.kill(victim["pid"], signal.SIGKILL)
        await eventually(lambda: all.clients.opened >= STREAMS + victim["streams"])
        await eventually(lambda: _replaced(all, victim["pid"]))
        await eventually(lambda: all.all_say(STREAMS))
        restarts = "sse_gateway_worker_restarts_total == 1 and on (instance) sse_gateway_workers == 2"
        await eventually(lambda: prometheus.query(restarts))
        assert await prometheus.query("min_over_time(up[10m])") == [1]
        for each in DEFINITIONS:
            series = f"{each.name}_count" if each.type == "histogram" else each.name
            if each.type != "gauge":
                fallen = await prometheus.query(f"max(resets({series}[10m]))")
                assert fallen in ([], [0]), f"{series} went backwards"
        # What the dead worker had counted by the last scrape is in the sum; clients saw no more than that.
        (told,) = await prometheus.query("sse_gateway_connections_total")
        assert STREAMS <= told <= all.clients.opened


async def _says(prometheus: Prometheus, expression: str, value: float) -> bool:
    return await prometheus.query(expression) == [value]


async def _replaced(all: Scene, pid: int) -> bool:
    worker = (await all.status())["workers"][0]
    return bool(worker["pid"] != pid and worker["ready"])


async def test_the_alerts_run_and_one_wakes_when_a_source_is_down(tmp_path: Path, redis: RedisServer) -> None:
    """promtool's series are made up; these are the gateway's own."""
    async with scene(tmp_path, redis) as all:
        prometheus = all.prometheus
        await eventually(lambda: _evaluated(prometheus))
        await eventually(lambda: _says(prometheus, "sse_gateway_source_up", 1))
        assert (await prometheus.states())["SseGatewaySourceDown"] == "inactive"
        redis.kill()
        await eventually(lambda: _is_awake(prometheus, "SseGatewaySourceDown"))
        states = await prometheus.states()
        assert {name for name, state in states.items() if state == "firing"} == set()
        assert states["SseGatewayBrokerDown"] == states["SseGatewayDown"] == "inactive"
        groups = (await prometheus.ask("rules"))["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        # Some mistakes show only with data: labels that do not match, two series where one is asked for.
        found = {expression: await prometheus.query(expression) for expression in expressions()}
        assert sum(map(bool, found.values())) > len(found) / 2


async def _evaluated(prometheus: Prometheus) -> bool:
    groups = (await prometheus.ask("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert not [rule.get("lastError") for rule in rules if rule["health"] == "err"]
    is_scraped = await prometheus.query("sse_gateway_source_up")
    return bool(is_scraped and rules and all(rule["health"] == "ok" for rule in rules))


async def _is_awake(prometheus: Prometheus, alert: str) -> bool:
    return (await prometheus.states())[alert] in ("pending", "firing")
