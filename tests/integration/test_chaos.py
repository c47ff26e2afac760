"""Things break while publishers publish and clients come and go: the checker's verdict on each."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.core.event import EventId
from tests.checker import Verdict, judge, running
from tests.support.gateway import BASE, eventually, merged
from tests.support.node import Node, leading
from tests.support.redis import RedisServer, redis_sentinel

pytestmark = [pytest.mark.extended, pytest.mark.timeout(1200)]  # a safety net like all deadlines

LONG = {"events": 100_000, "age": "1h"}

EVENTS, RESUMES = 300, 10
"""Received events and resumed streams, of all clients together, without which a verdict means nothing."""

ROUND = 90
"""Events that are accepted between two faults."""


def config(broker: str, **more: Any) -> dict[str, Any]:
    channels = {
        name: {"from": [{"source": "hooks", "topic": name}], "access": "public", "history": LONG}
        for name in ("orders", "stock", "news")
    }
    base = {
        **BASE,
        "logging": {"level": "info"},
        "broker": {"url": broker, "timeout": "1s"},
        "channels": channels,
    }
    return dict(merged({key: value for key, value in base.items() if key != "server"}, more))


def clean(verdict: Verdict) -> None:
    """Nothing lost, doubled, out of order or even excused; and enough happened for that to mean something."""
    assert verdict.is_clean, verdict
    assert not verdict.told, verdict
    assert verdict.events >= EVENTS
    assert verdict.resumes >= RESUMES


@pytest.fixture(params=["sqlite", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The brokers that several nodes share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return str(request.getfixturevalue("redis").url)


async def test_nodes_that_are_killed(broker: str, tmp_path: Path) -> None:
    """kill -9 of one node after another, under load; each comes back."""
    nodes = [Node(tmp_path, config(broker)) for _ in range(2)]
    async with running(nodes) as run:
        for round in range(4):
            await run.goes_on(ROUND)
            await nodes[round % 2].kill()
            await run.goes_on(10)
            await nodes[round % 2].start()
        clean(await run.finish(events=EVENTS, resumes=RESUMES))


async def test_a_rolling_restart(redis: RedisServer, tmp_path: Path) -> None:
    """Three nodes on one Redis, each asked to go and started again: what every deployment does."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(3)]
    async with running(nodes) as run:
        for node in nodes:
            await run.goes_on(ROUND)
            await node.stop()
            await node.start()
        clean(await run.finish(events=EVENTS, resumes=RESUMES))


async def test_pubsub_connections_that_are_cut(redis: RedisServer, tmp_path: Path) -> None:
    """What is published while a follower is away comes from the log."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(2)]
    async with running(nodes, pace=0.001) as run:
        with contextlib.closing(redis.client()) as client:
            for _ in range(10):
                await run.goes_on(ROUND)
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
        clean(await run.finish(events=EVENTS, resumes=RESUMES))


async def test_a_redis_that_stands_still(redis: RedisServer, tmp_path: Path) -> None:
    """Silence without a closed connection: posts wait until it is over, and nothing is lost."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(2)]
    async with running(nodes) as run:
        await run.goes_on(ROUND)
        redis.freeze()
        try:
            await eventually(lambda: all("broker_down" in node.log.read_text() for node in nodes))
            await asyncio.sleep(5)  # several tries to connect again
        finally:
            redis.thaw()
        await run.goes_on(ROUND)
        clean(await run.finish(events=EVENTS, resumes=RESUMES))


async def test_a_redis_that_forgets_everything(redis: RedisServer, tmp_path: Path) -> None:
    """FLUSHALL: everybody who may have lost something is told, and the order goes on."""
    nodes = [Node(tmp_path, config(redis.url)) for _ in range(2)]
    async with running(nodes) as run:
        with contextlib.closing(redis.client()) as client:
            for _ in range(3):
                await run.goes_on(ROUND)
                client.flushall()
        verdict = await run.finish(events=EVENTS, resumes=RESUMES)
    assert verdict.is_clean, verdict


async def test_clients_that_come_back_too_late(broker: str, tmp_path: Path) -> None:
    """A history shorter than the clients' absence: gaps, and each of them told."""
    short = {name: {"history": {"events": 5, "age": "10m"}} for name in ("orders", "stock", "news")}
    nodes = [Node(tmp_path, config(broker, channels=short)) for _ in range(2)]
    async with running(nodes, pace=0.002) as run:
        for client in run.clients:
            client.pause = 0.5
        while not judge(run.clients).told:
            await run.goes_on(ROUND)
        verdict = await run.finish(resumes=RESUMES)
    assert verdict.is_clean, verdict
    assert verdict.told


async def test_a_sentinel_failover(tmp_path: Path) -> None:
    """The master dies: lost is only what Redis itself lost, which is read back from the new one."""
    with redis_sentinel() as watched:
        nodes = [Node(tmp_path, config(watched.url)) for _ in range(2)]
        async with running(nodes) as run:
            await run.goes_on(ROUND)
            old = watched.master()
            old.kill()
            await eventually(lambda: watched.master() is not old)
            await run.goes_on(ROUND)
            verdict = await run.finish(events=EVENTS)
        kept = stored(watched.master(), "orders", "stock", "news")
    seen = {
        (body["channel"], body["payload"]): body["id"]
        for client in run.clients
        for message in client.seen
        if message.type == "message" and (body := message.json)
    }
    lost_by_redis = {what for what, id in seen.items() if id not in kept}
    assert not verdict.lost, verdict
    assert not verdict.reordered, verdict
    # A post that was delivered, not yet answered and then forgotten was sent again.
    assert len(verdict.duplicated) <= len(lost_by_redis) * len(run.clients), (verdict, lost_by_redis)
    if not lost_by_redis:
        clean(verdict)


def stored(server: RedisServer, *channels: str) -> set[str]:
    """Return the ids that a server's log holds."""
    with contextlib.closing(server.client()) as client:
        rows: list[Any] = [row for name in channels for row in client.xrange(f"{{sse}}:h:{name}") or ()]
    return {row[0].decode() for row in rows}


async def test_a_clock_that_jumps_back_an_hour(broker: str, tmp_path: Path) -> None:
    """Ids go on, history is kept, leases hold: on one node, on the other, and forward again."""
    clocks = [tmp_path / "clock-0", tmp_path / "clock-1"]
    for clock in clocks:
        clock.write_text("0")
    nodes = [Node(tmp_path, config(broker), "tests.support.shifted", str(clock)) for clock in clocks]
    async with running(nodes) as run:
        for clock, shift in zip(clocks * 2, ("-3600", "-3600", "0", "0"), strict=True):
            await run.goes_on(ROUND)
            clock.write_text(shift)
            await eventually(lambda: Path(f"{clock}.taken").read_text() == shift)  # noqa: B023 -- called at once
        await run.goes_on(ROUND)
        clean(await run.finish(events=EVENTS, resumes=RESUMES))
    ids = [EventId.parse(message.id) for client in run.clients for message in client.seen if message.id]
    assert max(id.seq for id in ids if id is not None) > 30, "ids counted on while the clock was behind"


async def test_a_pubsub_source_whose_reader_dies(broker: str, redis: RedisServer, tmp_path: Path) -> None:
    """PUBLISH goes on while the reading node is killed, again and again: the other has what is missing."""
    # A server that is only slow must not count as lost: that alone would be a gap.
    sources = {"app": {"type": "redis-pubsub", "url": redis.url, "timeout": "60s"}}
    channels = {
        name: {"from": [{"source": "app", "topic": name}], "access": "public", "history": LONG}
        for name in ("orders", "stock", "news")
    }
    nodes = [Node(tmp_path, config(broker, sources=sources, channels=channels)) for _ in range(2)]

    async def publish(channel: str, number: int) -> None:
        redis.publish(channel, str(number))

    async with running(nodes, send=publish) as run:
        for _ in range(3):
            # The other node listens, and what the leader stored last names a place that it knows.
            await eventually(lambda: all_hear(nodes))
            await run.passes_all_through()
            leader = await leading(nodes)
            assert leader is not None
            await leader.kill()
            others = [node for node in nodes if node is not leader]
            await eventually(lambda: leading(others))  # noqa: B023 -- called at once
            await leader.start()
        clean(await run.finish(events=EVENTS, resumes=RESUMES))


async def all_hear(nodes: Sequence[Node]) -> bool:
    """Tell whether the source ``app`` is connected on all nodes, and one of them reads it."""
    async with aiohttp.ClientSession() as session:
        for node in nodes:
            async with session.get(f"http://127.0.0.1:{node.admin}/status") as answer:
                sources = (await answer.json())["sources"]
            if [each["status"] for each in sources if each["name"] == "app"] != ["up"]:
                return False
    return await leading(nodes) is not None
