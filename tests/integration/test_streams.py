"""The redis-stream source against real servers: exactly once, in order, every trimmed entry reported."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from gateway.sources.redis import stream_reader, stream_servers
from tests.checker import running
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, eventually, gateway_running, merged
from tests.support.node import Node, leading
from tests.support.redis import RedisServer, cluster_url, redis_cluster, redis_sentinel, redis_server


def config(
    url: str, *topics: str, path: Path | None = None, timeout: str = "60s", **source: Any
) -> dict[str, Any]:
    """Return a source ``s`` with a channel ``all`` of these topics, and ``room.{id}`` of the streams room:…"""
    return {
        "broker": {"url": f"sqlite:///{path}/log.db" if path else "memory://"},
        "sources": {"s": {"type": "redis-stream", "url": url, "timeout": timeout, "scan": "100ms", **source}},
        "channels": {
            "all": {"from": [{"source": "s", "topic": topic} for topic in topics or ("orders",)], "access": "public"},
            "room.{id}": {"from": [{"source": "s", "topic": "room:{id}"}], "access": "public"},
        },
    }  # fmt: skip


async def leads(gateway: Gateway) -> None:
    """Wait until the source has stored its offsets and reads."""
    await eventually(lambda: gateway.daemon.source_manager.supervisors["s"].has_lease)
    await eventually(lambda: gateway.metric('source_up{source="s"}'))
    await eventually(lambda: knows(gateway))


async def knows(gateway: Gateway) -> bool:
    return await gateway.daemon.broker.read_offset("s/*room:*") is not None


@contextlib.contextmanager
def adding(redis: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis.client()) as client:
        yield lambda key="orders", **fields: client.xadd(key, fields)


async def payloads(stream: Stream, count: int) -> list[Any]:
    return [(await stream.next()).json["payload"] for _ in range(count)]


async def test_an_entry_is_an_event(redis: RedisServer) -> None:
    """An entry's payload, type or time would be lost on the way to the client."""
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        with adding(redis) as add:
            add(payload='{"a" : 1}', type="order.new", timestamp="1700000000123")
            id = add(customer="7", note="hö")
            add(payload="no json")
            add(payload="3")
        first = await stream.next()
        assert (first.type, first.json["payload"], first.json["timestamp"]) == (
            "order.new",
            {"a": 1},
            1700000000123,
        )
        assert b'"payload":{"a" : 1}' in stream.body
        second = (await stream.next()).json
        assert second["payload"] == {"customer": "7", "note": "hö"}
        assert second["timestamp"] == int(id.split(b"-")[0])
        assert (await stream.next()).json["payload"] == 3
        assert await gateway.metric('events_rejected_total{reason="not_json",source="s"}') == 1


async def test_fields_named_in_the_configuration(redis: RedisServer) -> None:
    """Entries that were not written for the gateway could not be mapped to events."""
    over = merged(
        config(redis.url, payload="data", event={"type": "{fields.kind}", "deduplicate": "{fields.n}"}),
        {"channels": {"user.{id}": {"from": [{"source": "s", "topic": "users", "fields": {"id": "{fields.user}"}}],
                                    "access": "public"}}},
    )  # fmt: skip
    async with gateway_running(over) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/user.7")
        with adding(redis) as add:
            add("users", data="1", kind="moved", user="7", n="a")
            add("users", data="1", kind="moved", user="7", n="a")
            add("users", data="x", payload="2", user="8", n="b")
            add("users", payload="2", user="7")
            add("users", data="2", user="7", n="c")
        assert (await stream.next()).type == "moved"
        assert (await stream.next()).json["payload"] == 2
        assert await gateway.metric('events_rejected_total{reason="no_payload",source="s"}') == 1


@pytest.mark.parametrize(
    ("start", "expected"),
    [("new", [3]), ("oldest", [0, 1, 2, 3]), ("id", [2, 3]), ("1600000000000", [0, 1, 2, 3])],
)
async def test_where_a_stream_begins(redis: RedisServer, start: str, expected: list[int]) -> None:
    """A first start would skip or repeat entries, against the `start` setting."""
    with adding(redis) as add:
        ids = [add(payload=str(number)) for number in range(3)]
        start = ids[1].decode() if start == "id" else start
        async with gateway_running(config(redis.url, start=start)) as gateway:
            await leads(gateway)
            stream = await gateway.open("/events/all?last=10")
            add(payload="3")
            await stream.next()
            assert await payloads(stream, len(expected)) == expected


async def test_streams_that_appear_are_read_from_their_first_entry(redis: RedisServer) -> None:
    """The first entries of a new stream would be lost."""
    with adding(redis) as add:
        add("room:old", payload="0")
        add("log.old", payload="0")
        async with gateway_running(config(redis.url, "log.*")) as gateway:
            await leads(gateway)
            await eventually(lambda: _has(gateway, "s/*log.*"))
            room = await gateway.subscribe("/events/room.5")
            logs = await gateway.subscribe("/events/all")
            for number in range(3):
                add("room:5", payload=str(number))
                add("log.x", payload=str(number))
            add("log.old", payload="3")
            assert await payloads(room, 3) == [0, 1, 2]
            assert sorted(await payloads(logs, 4)) == [0, 1, 2, 3]


async def _has(gateway: Gateway, cursor: str) -> bool:
    return await gateway.daemon.broker.read_offset(cursor) is not None


async def test_entries_trimmed_unread_are_a_gap_with_their_number(redis: RedisServer, tmp_path: Path) -> None:
    """Entries that were trimmed while no gateway ran would be missing without a gap."""
    over = config(redis.url, path=tmp_path)
    with adding(redis) as add, contextlib.closing(redis.client()) as client:
        async with gateway_running(over) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/all")
            add(payload='"read"')
            last = (await stream.next()).id
        for number in range(100):
            add(payload=str(number))
        client.xtrim("orders", maxlen=10, approximate=False)
        async with gateway_running(over) as gateway:
            stream = await gateway.subscribe("/events/all", {"Last-Event-ID": last})
            gap = await stream.next()
            assert (gap.type, gap.json["reason"], gap.json["missing"]) == (
                "stream.gap",
                "source_interrupted",
                90,
            )
            assert await payloads(stream, 10) == list(range(90, 100))
            add(payload='"on"')
            assert (await stream.next()).json["payload"] == "on"


async def test_a_gap_of_one_stream_is_none_of_another(redis: RedisServer, tmp_path: Path) -> None:
    """Clients of one room would reload because of a gap in another."""
    over = config(redis.url, path=tmp_path)
    with adding(redis) as add, contextlib.closing(redis.client()) as client:
        async with gateway_running(over) as gateway:
            await leads(gateway)
            ids = []
            for room in ("1", "2"):
                stream = await gateway.subscribe(f"/events/room.{room}")
                add(f"room:{room}", payload="0")
                ids.append((await stream.next()).id)
        for _ in range(5):
            add("room:2", payload="1")
        client.xtrim("room:2", maxlen=1, approximate=False)
        async with gateway_running(over) as gateway:
            streams = [
                await gateway.subscribe(f"/events/room.{room}", {"Last-Event-ID": max(ids)}) for room in "12"
            ]
            add("room:1", payload="1")
            assert (await streams[0].next()).json["payload"] == 1
            gap = await streams[1].next()
            assert (gap.type, gap.json["missing"]) == ("stream.gap", 4)


async def test_a_stream_that_is_deleted_and_created_anew(redis: RedisServer) -> None:
    """Entries with ids below the stored offset would never be read."""
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        with adding(redis) as add, contextlib.closing(redis.client()) as client:
            add(payload="1")
            assert await payloads(stream, 1) == [1]
            client.delete("orders")
            client.xadd("orders", {"payload": "2"}, id="5-0")
            assert (await stream.next()).type == "stream.gap"
            client.xadd("orders", {"payload": "3"}, id="6-0")
            while (message := await stream.next()).type == "stream.gap":
                pass
            assert message.json["payload"] in (2, 3)


async def test_a_key_of_another_type_harms_only_itself(redis: RedisServer) -> None:
    """One key of another type would stop the whole source."""
    with adding(redis) as add, contextlib.closing(redis.client()) as client:
        client.set("orders", "x")
        client.set("room:text", "x")
        async with gateway_running(config(redis.url, "orders", "stock")) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/all")
            add("stock", payload="1")
            assert await payloads(stream, 1) == [1]


async def test_more_than_one_read_holds_arrives_whole_and_in_order(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries would be lost or reordered where one read ends and the next begins."""
    monkeypatch.setattr(stream_reader, "TARGET_READ_BYTES", 100_000)
    with contextlib.closing(redis.client()) as client:
        pipe = client.pipeline(transaction=False)
        for number in range(5000):
            pipe.xadd("orders", {"payload": json.dumps({"n": number, "x": "x" * (number % 50) ** 2})})
        for number in range(300):
            pipe.xadd(f"room:{number % 30}", {"payload": str(number)})
        pipe.execute()
    history = {"history": {"events": 10_000}}
    over = merged(config(redis.url, "orders", "room:*", start="oldest"), {"channels": {"all": history}})
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/all?last=10000")
        found = await payloads(stream, 5300)
        assert [each["n"] for each in found if isinstance(each, dict)] == list(range(5000))
        rooms: dict[int, list[int]] = {}
        for number in [each for each in found if isinstance(each, int)]:
            rooms.setdefault(number % 30, []).append(number)
        assert all(numbers == sorted(numbers) and len(numbers) == 10 for numbers in rooms.values())


@pytest.mark.extended
@pytest.mark.parametrize("broker", ["sqlite", "redis"])
async def test_a_reader_that_is_killed_is_replaced_after_its_last_entry(
    broker: str, tmp_path: Path, redis: RedisServer
) -> None:
    """When the reading node is killed under load, events would be lost, repeated or reordered."""
    log = f"sqlite:///{tmp_path}/log.db" if broker == "sqlite" else redis.url
    names = ("orders", "stock", "news")
    channels = {
        name: {"from": [{"source": "s", "topic": name}], "access": "public", "history": {"events": 100_000, "age": "1h"}}
        for name in names
    }  # fmt: skip
    over = merged(
        BASE, {"broker": {"url": log}, "sources": config(redis.url)["sources"], "channels": channels}
    )
    nodes = [Node(tmp_path, over) for _ in range(2)]
    client = redis_py.asyncio.Redis.from_url(redis.url)

    async def send(channel: str, number: int) -> None:
        await client.xadd(channel, {"payload": str(number)})

    try:
        async with running(nodes, channels=names, send=send) as run:
            for _ in range(4):
                await run.goes_on(90)
                async with safety_net():
                    while (reader := await leading([node for node in nodes if node.is_running])) is None:
                        await asyncio.sleep(0.05)
                await reader.kill()
                await eventually(lambda: leading([node for node in nodes if node.is_running]))
                await reader.start()
            verdict = await run.finish(events=1000)
    finally:
        await client.aclose()
    assert verdict.is_clean, verdict
    assert not verdict.told


async def test_redis_dies_and_comes_back(redis: RedisServer) -> None:
    """An outage of Redis would close streams, not show in the status, or lose entries."""
    async with gateway_running(config(redis.url, timeout="1s")) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        with adding(redis) as add:
            add(payload="1")
        assert await payloads(stream, 1) == [1]
        redis.freeze()
        await eventually(lambda: _is_down(gateway))
        redis.thaw()
        with adding(redis) as add:
            add(payload="2")
        assert await payloads(stream, 1) == [2]


async def _is_down(gateway: Gateway) -> bool:
    return not await gateway.metric('source_up{source="s"}')


@pytest.mark.extended
async def test_a_cluster() -> None:
    """Streams in a Redis Cluster would not be found or read."""
    with redis_cluster() as servers:
        async with gateway_running(config(cluster_url(servers), "orders", "stock", "news")) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events?channel=all,room.1,room.2,room.3")
            client = redis_py.RedisCluster(host="127.0.0.1", port=servers[0].port)
            for number in range(3):
                for key in ("orders", "stock", "news", "room:1", "room:2", "room:3"):
                    client.xadd(key, {"payload": json.dumps([key, number])})
            client.close()
            found = await payloads(stream, 18)
            for key in ("orders", "stock", "news", "room:1", "room:2", "room:3"):
                assert [number for name, number in found if name == key] == [0, 1, 2]


@pytest.mark.extended
async def test_a_cluster_of_one_master() -> None:
    """A cluster with one master would refuse commands that name keys of two slots."""
    with redis_cluster(masters=1) as servers:
        async with gateway_running(config(cluster_url(servers), "orders", "stock")) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/all")
            with adding(servers[0]) as add:
                add("orders", payload="1")
                add("stock", payload="2")
            assert sorted(await payloads(stream, 2)) == [1, 2]


async def test_a_temporary_permission_error_is_no_loss(redis: RedisServer) -> None:
    """A server error would be taken for a deleted stream: entries repeated, or a false gap."""
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        with adding(redis) as add, contextlib.closing(redis.client()) as client:
            add(payload="1")
            assert await payloads(stream, 1) == [1]
            client.acl_setuser("default", enabled=True, commands=["-xinfo"])
            add(payload="2")
            await eventually(lambda: _is_down(gateway))
            _, status = await gateway.admin("/status")
            assert "xinfo" in status["sources"][1]["last_error"]
            client.acl_setuser("default", enabled=True, commands=["+xinfo"])
            add(payload="3")
            assert await payloads(stream, 2) == [2, 3]


async def test_a_key_that_becomes_a_stream_is_read(redis: RedisServer) -> None:
    """A key that becomes a stream later would never be read."""
    with adding(redis) as add, contextlib.closing(redis.client()) as client:
        client.set("orders", "x")
        async with gateway_running(config(redis.url)) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/all")
            client.delete("orders")
            add(payload="1")
            while (message := await stream.next()).type == "stream.gap":
                pass
            assert message.json["payload"] == 1


async def test_a_stream_of_a_watched_pattern_is_new_whatever_else_matches_it(
    redis: RedisServer, tmp_path: Path
) -> None:
    """A broader pattern added by a reload would make a new stream lose its first entries."""
    with adding(redis) as add:
        async with gateway_running(config(redis.url, "log.a*", path=tmp_path)) as gateway:
            await eventually(lambda: _has(gateway, "s/*log.a*"))
        for number in range(3):
            add("log.a2", payload=str(number))
        async with gateway_running(config(redis.url, "log.*", "log.a*", path=tmp_path)) as gateway:
            await eventually(lambda: _has(gateway, "s/*log.*"))
            stream = await gateway.open("/events/all?last=10")
            add("log.a2", payload="3")
            await stream.next()
            assert await payloads(stream, 4) == [0, 1, 2, 3]


async def test_a_new_stream_that_was_trimmed_before_it_was_found(redis: RedisServer) -> None:
    """Entries trimmed between a stream's creation and its discovery would be missing without a gap."""
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/room.1")
        with contextlib.closing(redis.client()) as client:
            pipe = client.pipeline(transaction=True)
            for number in range(100):
                pipe.xadd("room:1", {"payload": str(number)}, maxlen=10, approximate=False)
            pipe.execute()
        gap = await stream.next()
        assert (gap.type, gap.json["missing"], gap.json["after"]) == ("stream.gap", 90, None)
        assert await payloads(stream, 10) == list(range(90, 100))


async def test_deleted_streams_make_room(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted streams would count for the limit, and new ones would not be read."""
    monkeypatch.setattr(stream_reader, "MAX_STREAM_KEYS", 20)
    # An empty database answers no XREAD before its time is over, and the scan comes only then.
    monkeypatch.setattr(stream_servers, "BLOCK_SECONDS", 0.1)
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        with adding(redis) as add, contextlib.closing(redis.client()) as client:
            for turn in range(3):
                stream = await gateway.subscribe(f"/events/room.{turn}-0")
                for number in range(15):
                    add(f"room:{turn}-{number}", payload=str(number))
                assert await payloads(stream, 1) == [0]
                client.flushall()
                assert (await stream.next()).type == "stream.gap"


async def _parts(gateway: Gateway) -> set[str]:
    return set(await gateway.daemon.broker.list_partitions("s"))


@pytest.mark.parametrize("log", ["memory", "sqlite", "redis"])
async def test_deleted_streams_leave_nothing_in_the_log(log: str, redis: RedisServer, tmp_path: Path) -> None:
    """Each short-lived key (``job:*``) would leave an offset in the log for ever."""
    with redis_server() as upstream:
        over = {
            "broker": {
                "url": {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/log.db", "redis": redis.url}[
                    log
                ]
            }
        }
        async with gateway_running(merged(config(upstream.url), over)) as gateway:
            await leads(gateway)
            with adding(upstream) as add, contextlib.closing(upstream.client()) as client:
                for number in range(120):
                    add(f"room:{number}", payload="1")
                stream = await gateway.subscribe("/events/room.119?last=1")
                assert await payloads(stream, 1) == [1]
                await eventually(lambda: _has(gateway, "s/room:0"))
                client.delete(*(f"room:{number}" for number in range(1, 120)))
                # How many entries were unread cannot be known, so its clients receive a gap.
                assert (await stream.until("stream.gap")).json["reason"] == "source_interrupted"
            await eventually(lambda: _only(gateway, {"*room:*", "room:0", "orders"}))


async def _only(gateway: Gateway, parts: set[str]) -> bool:
    return await _parts(gateway) == parts


async def test_a_deleted_stream_is_noticed_while_others_appear(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New streams would keep the others from being inspected."""
    monkeypatch.setattr(stream_reader, "MAX_INSPECTED_KEYS", 20)
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        with adding(redis) as add, contextlib.closing(redis.client()) as client:
            add("room:first", payload="1")
            await eventually(lambda: _has(gateway, "s/room:first"))
            client.delete("room:first")
            numbers = itertools.count()

            async def is_forgotten() -> bool:
                add(f"room:{next(numbers)}", payload="1")
                await asyncio.sleep(0.05)
                return not await _has(gateway, "s/room:first")

            await eventually(is_forgotten)


async def test_a_stream_that_comes_and_goes_is_inspected_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a key is created again, it would be inspected once more per round, for ever."""
    turns: list[list[bytes]] = []

    def noted(reader: stream_reader.StreamReader) -> list[bytes]:
        turns.append(list(reader._inspection_queue))
        return original(reader)

    original = stream_reader.StreamReader._next_keys_to_inspect
    monkeypatch.setattr(stream_reader.StreamReader, "_next_keys_to_inspect", noted)
    async with gateway_running(config(redis.url)) as gateway:
        await leads(gateway)
        with adding(redis) as add, contextlib.closing(redis.client()) as client:
            for _ in range(3):
                add("room:1", payload="1")
                await eventually(lambda: _has(gateway, "s/room:1"))
                client.delete("room:1")
                await eventually(lambda: _only(gateway, {"*room:*", "orders"}))
    assert any(b"room:1" in keys for keys in turns)
    assert all(len(keys) == len(set(keys)) for keys in turns)


async def test_streams_that_disappear_while_nobody_reads(redis: RedisServer, tmp_path: Path) -> None:
    """Unread entries of streams deleted while no gateway ran would be missing without a gap."""
    over = config(redis.url, path=tmp_path)
    with adding(redis) as add, contextlib.closing(redis.client()) as client:
        async with gateway_running(over) as gateway:
            await leads(gateway)
            for number in range(3):
                add(f"room:{number}", payload="1")
            stream = await gateway.subscribe("/events/room.2?last=1")
            last = (await stream.next()).id
            await eventually(lambda: _only(gateway, {"*room:*", "room:0", "room:1", "room:2", "orders"}))
        add("room:2", payload="2")
        client.delete("room:1", "room:2")
        async with gateway_running(over) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/room.2", {"Last-Event-ID": last})
            assert (await stream.until("stream.gap")).json["reason"] == "source_interrupted"
            await eventually(lambda: _only(gateway, {"*room:*", "room:0", "orders"}))
            add("room:2", payload="3")
            assert await payloads(stream, 1) == [3], "a key that is written again is a new stream"


async def test_a_stream_is_trimmed_while_it_is_read(redis: RedisServer) -> None:
    """A gap would stand in the wrong place, or with the wrong number."""
    over = merged(config(redis.url), {"channels": {"all": {"history": {"events": 100_000}}}})
    async with gateway_running(over) as gateway:
        await leads(gateway)
        stream = await gateway.subscribe("/events/all")
        client = redis_py.asyncio.Redis.from_url(redis.url)
        for first in range(0, 20_000, 500):
            pipe = client.pipeline(transaction=False)
            for number in range(first, first + 500):
                pipe.xadd("orders", {"payload": str(number)}, maxlen=100, approximate=False)
            await pipe.execute()
        await client.aclose()
        expected = 0
        while expected < 20_000:
            message = await stream.next()
            if message.type == "stream.gap":
                expected += message.json["missing"]
            else:
                assert message.json["payload"] == expected
                expected += 1


@pytest.mark.extended
async def test_a_sentinel_failover() -> None:
    """After a failover the source would go on reading from the old master."""
    with redis_sentinel() as watched:
        async with gateway_running(config(watched.url, timeout="5s")) as gateway:
            await leads(gateway)
            stream = await gateway.subscribe("/events/all")
            master = watched.master()
            with adding(master) as add, contextlib.closing(master.client()) as client:
                add(payload="1")
                assert client.wait(1, 0) == 1
            assert await payloads(stream, 1) == [1]
            master.kill()
            await eventually(lambda: watched.master() is not master)
            other = watched.master()
            await eventually(lambda: _adds(other, "2"))
            while (message := await stream.next()).type == "stream.gap":
                pass
            assert message.json["payload"] == 2


def _adds(server: RedisServer, payload: str) -> bool:
    try:
        with adding(server) as add:
            add(payload=payload)
    except redis_py.RedisError:
        return False
    return True
