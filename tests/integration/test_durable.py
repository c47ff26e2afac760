"""The gateway on sqlite://: restarts, kills, and several gateways on one file."""

import asyncio
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.core.event import EventId
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, eventually, gateway_running, merged
from tests.support.node import Node
from tests.support.redis import RedisServer


def on(path: Path, **more: Any) -> dict[str, Any]:
    return {"broker": {"url": f"sqlite:///{path}"}, **more}


async def test_a_client_resumes_over_a_restart_without_a_gap(tmp_path: Path) -> None:
    """What memory:// cannot: the history is there after the process is gone."""
    async with gateway_running(on(tmp_path / "log.db")) as gateway:
        ids = [(await gateway.post("orders", str(number)))[0] for number in range(3)]
    async with gateway_running(on(tmp_path / "log.db")) as gateway:
        stream = await gateway.open("/events/orders", {"Last-Event-ID": ids[0]})
        assert (await stream.next()).json["resume"] == "complete"
        ids += await gateway.post("orders", "3")
        assert [(await stream.next()).id for _ in range(3)] == ids[1:]


async def test_two_gateways_on_one_file_are_one(tmp_path: Path) -> None:
    """Posted to either, delivered by both, in one order with the same ids; a client may change between them."""
    path = tmp_path / "log.db"
    async with gateway_running(on(path)) as one, gateway_running(on(path)) as two:
        streams = [await node.subscribe("/events?channel=orders,stock") for node in (one, two)]
        posted = []
        for number in range(60):
            posted += await (one, two)[number % 2].post(("orders", "stock")[number % 3 % 2], str(number))
        for stream in streams:
            assert [(await stream.next()).id for _ in range(60)] == sorted(posted)
        moved = await two.subscribe("/events?channel=orders,stock", {"Last-Event-ID": posted[29]})
        assert [(await moved.next()).id for _ in range(30)] == posted[30:]


async def test_an_id_that_the_other_gateway_just_gave_is_no_gap(tmp_path: Path) -> None:
    """A client that comes from a node which is a moment ahead waits for this one, and misses nothing."""
    path = tmp_path / "log.db"
    async with gateway_running(on(path)) as one, gateway_running(on(path)) as two:
        for number in range(30):
            (id,) = await one.post("orders", str(number))
            stream = await two.open("/events/orders", {"Last-Event-ID": id})
            assert (await stream.next()).json["resume"] == "complete"
            stream.close()
        stream = await two.subscribe("/events/orders", {"Last-Event-ID": id})
        (after,) = await one.post("orders", '"after"')
        assert (await stream.next()).id == after


@pytest.mark.extended
async def test_ten_thousand_posts_answered_before_a_kill_9_are_delivered_after_it(tmp_path: Path) -> None:
    """Guarantee 4, from outside: a 2xx means on disk. 10,000 of 10,000."""
    keep = {"orders": {"history": {"events": 100_000, "age": "1h"}}}
    config = on(tmp_path / "log.db", **{**BASE, "channels": merged(BASE["channels"], keep)})
    node = Node(tmp_path, config)
    answered: list[str] = []

    async def post(session: aiohttp.ClientSession) -> None:
        with suppress(aiohttp.ClientError):
            while True:
                url = f"http://127.0.0.1:{node.port}/hooks/hooks?topic=orders"
                async with session.post(url, data=b"1") as answer:
                    said = await answer.json()
                    assert answer.status == 200, said
                    answered.extend(said["ids"])

    try:
        await node.start()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            senders = [asyncio.create_task(post(session)) for _ in range(200)]
            await eventually(lambda: len(answered) >= 10_000)
            await node.kill()
            await asyncio.gather(*senders)
        await node.start()
        first = min(EventId.parse(id) or EventId(0, 0) for id in answered)
        stream = await Stream.open(node.port, f"/events/orders?since={EventId.last_before_ms(first.ms)}")
        seen: set[str] = set()
        while not set(answered) <= seen:
            message = await stream.next()
            assert message.type in ("stream.open", "message")
            seen.add(message.id)
        stream.close()
    finally:
        await node.kill()


async def test_what_redis_published_while_the_gateway_was_away_is_a_gap(
    tmp_path: Path, redis: RedisServer
) -> None:
    """The log is whole over a restart, pub/sub is not: a client that resumes over it must be told."""
    more = on(
        tmp_path / "log.db",
        sources={"app": {"type": "redis-pubsub", "url": redis.url, "timeout": "60s"}},
        channels={"orders": {"from": [{"source": "app", "topic": "orders.*"}]}},
    )
    async with gateway_running(more) as gateway:
        await eventually(lambda: gateway.daemon.source_manager.supervisors["app"].has_lease)
        stream = await gateway.subscribe("/events/orders")
        redis.publish("orders.x", "1")
        last = (await stream.next()).id
    redis.publish("orders.x", "2")
    async with gateway_running(more) as gateway:
        stream = await gateway.subscribe("/events/orders", {"Last-Event-ID": last})
        gap = await stream.next()
        assert (gap.type, gap.json["reason"]) == ("stream.gap", "source_interrupted")
        redis.publish("orders.x", "3")
        assert (await stream.next()).json["payload"] == 3


@pytest.mark.parametrize("what", ["the folder of nudges", "the data folder"])
async def test_a_folder_that_is_removed_hangs_no_post(tmp_path: Path, what: str) -> None:
    """Every post would hang until a restart, and both probes would say that all is well."""
    folder = tmp_path / "data"
    nudges = folder / "log.db-nodes"
    nudges.mkdir(parents=True)  # of an older build
    async with gateway_running({"broker": {"url": f"sqlite:///{folder}/log.db"}}) as gateway:
        stream = await gateway.subscribe("/events/orders")
        before = await gateway.post("orders", "1")
        assert (await stream.next()).json["payload"] == 1
        gone = nudges if what == "the folder of nudges" else folder
        while gone.exists():
            shutil.rmtree(gone, ignore_errors=True)
        async with safety_net():
            for number in range(2, 6):
                await gateway.post("orders", str(number))
        found = [await stream.next()]
        while found[-1].type != "message" or found[-1].json["payload"] != 5:
            found.append(await stream.next())
        assert [each.json["payload"] for each in found if each.type == "message"] == [2, 3, 4, 5]
        assert ("stream.gap" in [each.type for each in found]) == (gone == folder)
        resumed = await gateway.open("/events/orders", {"Last-Event-ID": before[0]})
        assert (await resumed.next()).json["resume"] == ("gap" if gone == folder else "complete")
        await eventually(lambda: gateway.daemon.broker.is_up and gateway.daemon.canary.fault is None)
        assert (await gateway.admin("/readyz"))[0] == 200


async def test_a_folder_that_cannot_be_made_again_is_said_to_probes_and_senders(tmp_path: Path) -> None:
    """503 with a reason, at once, and 200 again when the cause is gone."""
    folder = tmp_path / "data"
    async with gateway_running({"broker": {"url": f"sqlite:///{folder}/log.db"}}) as gateway:
        await gateway.post("orders", "1")
        while folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
        folder.write_text("in its place")
        url = f"{gateway.url}/hooks/hooks?topic=orders"

        async def is_refused() -> bool:
            async with gateway.session.post(url, data="2") as answer:
                assert answer.status == 200 or "Retry-After" in answer.headers
                return answer.status == 503

        async def is_unready() -> bool:
            status, body = await gateway.admin("/readyz")
            return status == 503 and "broker" in body["not_ready"] and str(folder) in body["broker"]

        await eventually(is_refused)
        await eventually(is_unready)
        folder.unlink()

        async def is_taken() -> bool:
            return not await is_refused()

        await eventually(is_taken)
        await eventually(lambda: gateway.daemon.canary.fault is None)
