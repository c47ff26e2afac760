"""The Kafka source against a real protocol server: no record lost or repeated, in order per partition."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewPartitions
from aiokafka.structs import TopicPartition

from gateway.core.errors import StartupError
from gateway.sources import kafka as kafka_source
from tests.checker import running
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, eventually, gateway_running, merged
from tests.support.kafka import KafkaServer, kafka_server
from tests.support.node import Node, leading
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.extended, pytest.mark.timeout(1200)]  # a safety net like all deadlines


@pytest.fixture
async def kafka() -> AsyncIterator[KafkaServer]:
    async with kafka_server() as server:
        yield server


def config(
    kafka: KafkaServer, *topics: str, path: Path | None = None, timeout: str = "10s", **source: Any
) -> dict[str, Any]:
    return {
        "broker": {"url": f"sqlite:///{path}/log.db" if path else "memory://"},
        "sources": {"k": {"type": "kafka", "brokers": kafka.brokers, "scan": "300ms", "timeout": timeout, **source}},
        "channels": {
            "all": {"from": [{"source": "k", "topic": topic} for topic in topics or ("orders",)], "access": "public"},
            "user.{id}": {"from": [{"source": "k", "topic": "users", "fields": {"id": "{key}"}}], "access": "public"},
        },
    }  # fmt: skip


async def leads(gateway: Gateway) -> None:
    await eventually(lambda: _has(gateway, "k/*users"))


async def _has(gateway: Gateway, cursor: str) -> bool:
    return await gateway.daemon.broker.read_offset(cursor) is not None


async def payloads(stream: Stream, count: int) -> list[Any]:
    return [(await stream.next()).json["payload"] for _ in range(count)]


async def test_a_record_is_an_event(kafka: KafkaServer) -> None:
    """A record's value or timestamp would change, or a rejected record would go uncounted."""
    await kafka.create({"orders": 1})
    async with gateway_running(config(kafka)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.send("orders", '{"a" : 1}', timestamp_ms=1_700_000_000_123)
        await kafka.send("orders", "no json", None, 3)
        first = await stream.next()
        assert b'"payload":{"a" : 1}' in stream.body
        assert first.json["timestamp"] == 1_700_000_000_123
        assert await payloads(stream, 2) == [None, 3]
        assert await gateway.metric('events_rejected_total{reason="not_json",source="k"}') == 1


async def test_key_and_headers_name_channel_type_and_key(kafka: KafkaServer) -> None:
    """Templates could not be filled from records, or a producer's retry would be a second event."""
    await kafka.create({"users": 2, "orders": 1})
    event = {"type": "{headers.kind}", "deduplicate": "{headers.id}"}
    async with gateway_running(config(kafka, event=event)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/user.7")
        headers = [("Kind", b"moved"), ("id", b"1")]
        await kafka.send("users", 1, 1, key=b"7", headers=headers)
        await kafka.send("users", 2, key=b"8")
        await kafka.send("users", 3, key=b"7")
        message = await stream.next()
        assert (message.type, message.json["payload"]) == ("moved", 1)
        assert await payloads(stream, 1) == [3]


@pytest.mark.parametrize(("start", "expected"), [("new", [3]), ("oldest", [0, 1, 2, 3]), ("time", [2, 3])])
async def test_where_a_partition_begins(kafka: KafkaServer, start: str, expected: list[int]) -> None:
    """A first start would skip or repeat records, against the `start` setting."""
    await kafka.create({"orders": 1})
    for number in range(3):
        await kafka.send("orders", number, timestamp_ms=1_700_000_000_000 + number * 60_000)
    start = "2023-11-14T22:15:00Z" if start == "time" else start
    async with gateway_running(config(kafka, start=start)) as gateway:
        await leads(gateway)
        stream = await gateway.open("/events/all?last=10")
        await kafka.send("orders", 3)
        await stream.next()
        assert await payloads(stream, len(expected)) == expected


async def test_topics_and_partitions_that_appear_are_read_from_their_first_record(kafka: KafkaServer) -> None:
    """The first records of a new topic or partition would be lost."""
    await kafka.create({"log.a": 1})
    await kafka.send("log.a", '"old"')
    async with gateway_running(config(kafka, "log.*")) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.create({"log.b": 1})
        await kafka.send("log.b", 1, 2)
        async with kafka.admin() as admin:
            await admin.create_partitions({"log.a": NewPartitions(2)})
        await kafka.send("log.a", 3, 4, partition=1)
        assert sorted(await payloads(stream, 4)) == [1, 2, 3, 4]


async def test_records_removed_unread_by_retention_are_a_gap_with_their_number(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    """Records that expired while no gateway ran would be missing without a gap."""
    await kafka.create({"orders": 1})
    over = config(kafka, path=tmp_path)
    async with gateway_running(over) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.send("orders", 0)
        last = (await stream.next()).id
    await kafka.send("orders", *range(1, 11))
    await kafka.trim("orders", 0, 8)
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/all", {"Last-Event-ID": last})
        gap = await stream.next()
        assert (gap.type, gap.json["reason"], gap.json["missing"]) == ("stream.gap", "source_interrupted", 7)
        assert abs(int(gap.json["after"].split("-")[0]) - time.time() * 1000) < 3_600_000
        assert await payloads(stream, 3) == [8, 9, 10]


async def test_transactions(kafka: KafkaServer, tmp_path: Path) -> None:
    """Aborted records would become events, or transaction markers would count as lag or as a gap."""
    await kafka.create({"orders": 1})
    over = config(kafka, path=tmp_path)
    async with gateway_running(over) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        producer = AIOKafkaProducer(bootstrap_servers=kafka.brokers, transactional_id="t")
        await producer.start()
        try:
            for number in range(4):
                await producer.begin_transaction()
                await producer.send_and_wait("orders", str(number).encode(), partition=0)
                await (producer.abort_transaction() if number == 3 else producer.commit_transaction())
        finally:
            await producer.stop()
        assert await payloads(stream, 3) == [0, 1, 2]
        last = stream.messages[-1].id
        await eventually(lambda: _at(gateway, 8))
        await eventually(lambda: _lags_by(gateway, 0))
    await kafka.trim("orders", 0, 8)
    async with gateway_running(over) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all", {"Last-Event-ID": last})
        await kafka.send("orders", 4)
        assert await payloads(stream, 1) == [4]


async def _lags_by(gateway: Gateway, records: int) -> bool:
    return await gateway.metric('source_lag_records{source="k"}') == records


async def _at(gateway: Gateway, offset: int) -> bool:
    return (await gateway.daemon.broker.read_offset("k/orders/0") or "").startswith(f"{offset}/")


async def test_offsets_are_committed_for_others_to_see(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools that show a group's lag would show none, or a foreign commit would move our offset."""
    monkeypatch.setattr(kafka_source, "COMMIT_INTERVAL_SECONDS", 0.2)
    await kafka.create({"orders": 1})
    async with gateway_running(config(kafka, group="web")) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.send("orders", 0, 1, 2)
        await payloads(stream, 3)
        part = TopicPartition("orders", 0)
        viewer = AIOKafkaConsumer(bootstrap_servers=kafka.brokers, group_id="web", enable_auto_commit=False)
        await viewer.start()
        try:

            async def committed() -> bool:
                return bool(await viewer.committed(part) == 3)

            viewer.assign([part])
            await eventually(committed)
        finally:
            await viewer.stop()


async def test_a_member_of_the_same_group_disturbs_nobody(kafka: KafkaServer) -> None:
    """A foreign member of our consumer group would make us lose or repeat records."""
    await kafka.create({"orders": 2})
    async with gateway_running(config(kafka, group="web")) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.send("orders", 0, 1)
        other = AIOKafkaConsumer("orders", bootstrap_servers=kafka.brokers, group_id="web")
        await other.start()
        try:
            await kafka.send("orders", 2, 3, partition=1)
            assert sorted(await payloads(stream, 4)) == [0, 1, 2, 3]
        finally:
            await other.stop()
        await kafka.send("orders", 4)
        assert await payloads(stream, 1) == [4]


async def test_kafka_freezes_dies_and_comes_back(kafka: KafkaServer) -> None:
    """An outage would not show in the status, or records would be lost after it."""
    await kafka.create({"orders": 1})
    async with gateway_running(config(kafka, timeout="2s")) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        await kafka.send("orders", 1)
        assert await payloads(stream, 1) == [1]
        kafka.freeze()
        await eventually(lambda: _is_down(gateway))
        kafka.thaw()
        await kafka.send("orders", 2)
        assert await payloads(stream, 1) == [2]
        await eventually(lambda: kafka.has_saved("orders", 2))
        kafka.kill()
        await eventually(lambda: _is_down(gateway))
        _, status = await gateway.admin("/status")
        (source,) = (each for each in status["sources"] if each["name"] == "k")
        assert "Kafka" in source["last_error"]
        await kafka.start()
        await kafka.send("orders", 3)
        assert await payloads(stream, 1) == [3]


async def _is_down(gateway: Gateway) -> bool:
    return not await gateway.metric('source_up{source="k"}')


async def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator without the extra would see a traceback instead of the command to install it."""
    monkeypatch.setattr(kafka_source, "AIOKafkaConsumer", None)
    over = {
        "sources": {"k": {"type": "kafka", "brokers": "127.0.0.1:1"}},
        "channels": {"all": {"from": [{"source": "k", "topic": "t"}], "access": "public"}},
    }
    with pytest.raises(StartupError, match=r"pip install 'sse-gateway\[kafka\]'"):
        async with gateway_running(over):
            pass


async def test_two_nodes_under_kills_and_changes_of_reader(
    kafka: KafkaServer, redis: RedisServer, tmp_path: Path
) -> None:
    """Under kills of readers and Kafka, drains and rebalances, events would be lost, repeated or reordered.

    One topic of three partitions; a record's key names its channel, and so its partition. The log is a Redis.
    """
    await kafka.create({"events": 3})
    keyed = {"from": [{"source": "k", "topic": "events", "fields": {"name": "{key}"}}], "access": "public",
             "history": {"events": 100_000, "age": "1h"}}  # fmt: skip
    sources = config(kafka)["sources"]
    over = merged(
        BASE,
        {"broker": {"url": redis.url, "timeout": "30s"}, "sources": sources, "channels": {"c.{name}": keyed}},
    )
    nodes = [Node(tmp_path, over) for _ in range(2)]
    open_, under_way = asyncio.Event(), 0
    open_.set()

    async with contextlib.AsyncExitStack() as producers:
        producer = await producers.enter_async_context(kafka.producer())

        async def send(channel: str, number: int) -> None:
            nonlocal under_way
            await open_.wait()
            under_way += 1
            await producer.send_and_wait("events", str(number).encode(), key=channel.encode()[2:])
            under_way -= 1

        async with running(nodes, channels=("c.orders", "c.stock", "c.news"), send=send, pace=0.01) as run:
            for _ in range(3):
                await run.goes_on(60)
                await (await reader(nodes)).kill()
                await eventually(lambda: leading([node for node in nodes if node.is_running]))
                await asyncio.gather(*(node.start() for node in nodes if not node.is_running))
            # Kafka itself, after it has written what it acknowledged.
            open_.clear()
            await eventually(lambda: under_way == 0)
            await eventually(lambda: kafka.has_saved("events", sum(run.accepted.values())))
            kafka.kill()
            await kafka.start()
            producer = await producers.enter_async_context(kafka.producer())
            open_.set()
            stranger = AIOKafkaConsumer("events", bootstrap_servers=kafka.brokers, group_id="sse-gateway")
            await stranger.start()
            await eventually(stranger.assignment)
            await run.goes_on(60)
            await stranger.stop()
            drained = await reader(nodes)
            await drained.stop()
            await run.goes_on(60)
            await drained.start()
            await run.goes_on(60)
            verdict = await run.finish(events=1000, resumes=50)
    assert verdict.is_clean, verdict
    assert not verdict.told


async def reader(nodes: list[Node]) -> Node:
    """Wait for the node that reads, and return it."""
    async with safety_net():
        while (found := await leading([node for node in nodes if node.is_running])) is None:
            await asyncio.sleep(0.05)
    return found
