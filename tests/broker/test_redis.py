"""The Redis broker: the contract on a single server, Sentinel and a cluster; outages and lost data."""

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.broker.redis.broker import RedisBroker
from gateway.config.model.config import PoolConfig
from gateway.config.model.redis_url import RedisUrl
from gateway.core.clock import unix_ms
from gateway.core.errors import StartupError, Unavailable
from gateway.core.event import EventId, SourceOffset
from gateway.net.redis_locator import RedisLocator
from tests.broker.contract import FAR, ZERO, Clock, Follower, SharedContract, draft, read
from tests.support.deadline import safety_net
from tests.support.gateway import eventually
from tests.support.redis import RedisServer, cluster_url, redis_cluster, redis_sentinel, redis_server
from tests.support.tls import make_certificate, tunnel


@pytest.fixture(scope="module", params=["single", "sentinel", "cluster"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start the servers that all contract tests share; each test has a log of its own."""
    if request.param == "single":
        with redis_server() as server:
            yield server.url
    elif request.param == "sentinel":
        with redis_sentinel() as watched:
            yield watched.url
    else:
        with redis_cluster() as servers:
            yield cluster_url(servers)


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(4)


@pytest.fixture
def clock() -> Clock:
    return Clock()


PATIENT = 60.0
"""Seconds of a ``timeout`` that even a slow machine does not reach."""


def make(
    url: str,
    prefix: str,
    clock: Clock | None = None,
    limits: PoolConfig | None = None,
    timeout: float = PATIENT,
) -> RedisBroker:
    return RedisBroker(
        url,
        prefix=prefix,
        pool_limits=limits or PoolConfig.model_validate({}),
        timeout=timeout,
        clock=clock or unix_ms,
    )


async def start(broker: RedisBroker) -> None:
    """Start, and wait for Redis as long as it takes."""
    await broker.start()
    await eventually(lambda: broker.is_up)


@pytest.fixture
async def broker(url: str, prefix: str, clock: Clock) -> AsyncIterator[RedisBroker]:
    broker = make(url, prefix, clock)
    await start(broker)
    yield broker
    await broker.close()


@pytest.fixture
async def other(url: str, prefix: str, broker: RedisBroker, clock: Clock) -> AsyncIterator[RedisBroker]:
    other = make(url, prefix, clock)
    await start(other)
    yield other
    await other.close()


class TestRedisBroker(SharedContract):
    """The contract of every broker, on every deployment."""


async def test_a_search_for_the_server_can_be_cancelled_at_any_time(url: str) -> None:
    """redis-py loses a cancellation while it connects: a shutdown would wait for whole timeouts."""
    target = RedisLocator(RedisUrl.parse(url))
    for turns in range(40):
        search = asyncio.create_task(target.locate("log", PATIENT))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not search.cancel():
            await search
            break
        with pytest.raises(asyncio.CancelledError):
            await search


# What is Redis's own; one server of its own for each test, so that it may be broken.


@pytest.fixture
async def nodes(redis: RedisServer) -> AsyncIterator[list[RedisBroker]]:
    """Two nodes on one server."""
    async with running(redis) as brokers:
        yield brokers


@contextlib.asynccontextmanager
async def running(redis: RedisServer, timeout: float = PATIENT) -> AsyncIterator[list[RedisBroker]]:
    """Run two nodes on one server."""
    brokers = [make(redis.url, "sse", timeout=timeout) for _ in range(2)]
    for broker in brokers:
        await start(broker)
    try:
        yield brokers
    finally:
        for broker in brokers:
            await broker.close()


async def appended(broker: RedisBroker) -> None:
    """Append an event; with the short timeout of a test it may take several attempts."""

    async def is_appended() -> bool:
        with contextlib.suppress(Unavailable):
            return bool(await broker.append([draft("c")]))
        return False

    await eventually(is_appended)


async def seen_by_monitors(nodes: Sequence[RedisBroker], condition: Callable[[], Any]) -> None:
    """Wait for a condition that the connection monitors detect, without their pause between two checks."""

    def is_met() -> Any:
        for node in nodes:
            node._connection.is_suspect.set()
        return condition()

    await eventually(is_met)


def command(redis: RedisServer, *words: str | int) -> Any:
    with contextlib.closing(redis.client()) as client:
        return client.execute_command(*words)  # type: ignore[no-untyped-call]


async def test_a_missing_live_message_is_a_gap(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """A live message that is lost would be missing without a gap."""
    follower = Follower(nodes[0])
    await nodes[1].append([draft("c")])
    await follower.until(1)
    header = json.dumps(["9999999999999-5", [["9999999999999-6", "c", 1, None, True, 1]]])
    command(redis, "PUBLISH", "sse-gateway:{sse}:live", header + "\nx")
    events = await follower.until(2)
    assert follower.lost == [EventId(9999999999999, 5)]
    assert events[1].id == EventId(9999999999999, 6)


async def test_a_flushed_log_goes_on_with_a_gap(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """After FLUSHALL ids would go back, or older events would be missing without a gap."""
    followers = [Follower(node) for node in nodes]
    (old,) = await nodes[0].append([draft("c"), draft("quiet")][:1])
    await followers[1].until(1)
    command(redis, "FLUSHALL")
    await seen_by_monitors(nodes, lambda: followers[0].lost and followers[1].lost)
    await eventually(lambda: nodes[0].is_up and nodes[1].is_up)
    (new,) = await nodes[1].append([draft("c")])
    assert new > old
    for node in nodes:
        for channel in ("c", "quiet"):
            _, floor = await read(node, channel, EventId(old.ms - 1, 0))
            assert floor is not None
            assert floor > old or channel == "c"


async def test_a_log_that_lost_events_goes_on_after_them(
    nodes: list[RedisBroker], redis: RedisServer
) -> None:
    """Writes that a failover lost would be missing without a gap."""
    ids = [(await nodes[0].append([draft("c")]))[0] for _ in range(3)]
    follower = Follower(nodes[0])
    command(redis, "HSET", "{sse}:log", "head", str(ids[0]))
    command(redis, "XDEL", "{sse}:h:c", str(ids[1]), str(ids[2]))
    command(redis, "SET", "{sse}:l:c", f"{ids[0]} -")
    (after,) = await nodes[0].append([draft("c")])
    assert after > ids[2]
    await follower.until(1)
    assert (await read(nodes[1], "c", ids[0]))[1] == ids[2]
    assert (await read(nodes[1], "c", ids[2]))[1] is None


async def test_a_loss_is_reported_even_if_another_node_appends_first(redis: RedisServer) -> None:
    """A restart from an old dump would hide lost events if another node appends first."""
    old = make(redis.url, "sse")
    await start(old)
    follower = Follower(old)
    ids = [(await old.append([draft("c")]))[0] for _ in range(4)]
    await follower.until(4)
    # Away while Redis is restarted and somebody else comes first.
    old._tasks[0].cancel()
    await asyncio.gather(old._tasks[0], return_exceptions=True)
    for id in ids[1:]:
        command(redis, "XDEL", "{sse}:h:c", str(id))
    command(redis, "HSET", "{sse}:log", "head", str(ids[0]))
    command(redis, "SET", "{sse}:l:c", f"{ids[0]} -")
    fresh = make(redis.url, "sse")
    await start(fresh)
    (new,) = await fresh.append([draft("c")])
    assert await read(fresh, "c", ids[0]) == ([new], None), "nobody can know yet"
    old._tasks[0] = asyncio.create_task(old._follower.run())
    await eventually(lambda: old.is_up)
    for node in (old, fresh):
        assert await read(node, "c", ids[0]) == ([new], ids[3])
    await old.close()
    await fresh.close()


async def test_events_after_a_lost_part_are_read(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """Events older than a gap would be delivered after it."""
    await nodes[0].append([draft("c") for _ in range(20)])
    (start,) = await nodes[0].append([draft("other")])
    new = await nodes[0].append([draft("c") for _ in range(5)])
    command(redis, "HSET", "{sse}:log", "start", str(start))
    ids, floor = await read(nodes[0], "c", ZERO, limit=3)
    assert (ids, floor) == (new[:3], start)


async def test_a_lost_token_is_replaced(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """After an eviction of the fencing tokens no node could read the source."""
    old = await nodes[0].acquire_lease("s", 30)
    command(redis, "DEL", "{sse}:tokens")
    new = await nodes[0].acquire_lease("s", 30)
    assert old is not None
    assert new is not None
    assert new.number > old.number


async def test_an_append_under_way_at_the_stop_ends(redis: RedisServer) -> None:
    """A sender would wait for ever if the gateway stops while Redis hangs."""
    broker = make(redis.url, "sse", timeout=1.0)  # which a close waits for a server that says nothing
    await start(broker)
    redis.freeze()
    under_way = asyncio.create_task(broker.append([draft("c")]))
    await asyncio.sleep(0.05)
    await broker.close()
    with pytest.raises(Unavailable):
        async with safety_net():
            await under_way
    redis.thaw()
    with pytest.raises(Unavailable):
        await broker.append([draft("c")])


async def test_a_demoted_primary_is_left(redis: RedisServer) -> None:
    """After a failover the node would write to the old primary for ever."""
    broker = make(redis.url, "sse")
    await start(broker)
    command(redis, "REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(Unavailable, match="read only"):
        await broker.append([draft("c")])
    await eventually(lambda: not broker.is_up)
    command(redis, "REPLICAOF", "NO", "ONE")
    await eventually(lambda: broker.is_up)
    await broker.append([draft("c")])
    await broker.close()


async def test_a_key_of_another_type_is_replaced_with_a_gap(
    nodes: list[RedisBroker], redis: RedisServer
) -> None:
    """Another program's write to one key would break all channels."""
    (first,) = await nodes[0].append([draft("c")])
    await nodes[0].append([draft("d")])
    command(redis, "DEL", "{sse}:h:c")
    command(redis, "SET", "{sse}:h:c", "theirs")
    assert (await read(nodes[0], "c", EventId(first.ms, first.seq)))[1] is not None
    assert len((await read(nodes[0], "d", first))[0]) == 1
    (second,) = await nodes[0].append([draft("c")])
    assert (await read(nodes[0], "c", first)) == ([second], None)


async def test_eviction_is_a_gap(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """Events that Redis evicted would be missing without a gap."""
    (first,) = await nodes[0].append([draft("c", b"x" * 1000)])
    used = int(command(redis, "INFO", "memory")["used_memory"])
    command(redis, "CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    command(redis, "CONFIG", "SET", "maxmemory", used + 100_000)
    for number in range(300):
        command(redis, "SET", f"theirs{number}", "x" * 1000)
    command(redis, "CONFIG", "SET", "maxmemory", 0)
    # Until both watches have looked: the log's own hash may be gone as well.
    looked = [node._follower._canary_number + 2 for node in nodes]
    await seen_by_monitors(
        nodes,
        lambda: all(node._follower._canary_number > count for node, count in zip(nodes, looked, strict=True)),
    )
    assert int(command(redis, "INFO", "stats")["evicted_keys"]) > 0

    async def is_told() -> bool:
        with contextlib.suppress(Unavailable):  # the log itself may be among what was evicted
            return (await read(nodes[0], "c", EventId(first.ms - 1, 0)))[1] is not None
        return False

    await eventually(is_told)
    await eventually(lambda: nodes[0].is_up)
    (after,) = await nodes[0].append([draft("c")])
    assert after > first
    assert await read(nodes[0], "c", after) == ([], None)


async def test_a_full_redis_rejects_and_recovers(nodes: list[RedisBroker], redis: RedisServer) -> None:
    """A full Redis would store half of a batch, or stop the log for good."""
    await nodes[0].append([draft("c")])
    command(redis, "CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(Unavailable, match="maxmemory"):
        await nodes[0].append([draft("c"), draft("d")], SourceOffset("s", "1"))
    command(redis, "CONFIG", "SET", "maxmemory", 0)
    assert await nodes[0].read_offset("s") is None
    assert (await read(nodes[0], "d"))[0] == []
    await eventually(lambda: nodes[0].is_up)
    follower = Follower(nodes[0])
    await nodes[0].append([draft("c")])
    await follower.until(1)


async def test_a_server_that_hangs_is_detected(redis: RedisServer) -> None:
    """A Redis that hangs without an error would not be detected."""
    async with running(redis, timeout=1.0) as nodes:
        follower = Follower(nodes[0])
        redis.freeze()
        await eventually(lambda: not nodes[0].is_up and not nodes[1].is_up)
        with pytest.raises(Unavailable):
            await nodes[0].append([draft("c")])
        with pytest.raises(Unavailable):
            await nodes[0].read({"c": ZERO}, FAR, 1)
        redis.thaw()
        await eventually(lambda: nodes[0].is_up and nodes[1].is_up)
        await appended(nodes[1])
        await follower.until(1)


async def test_a_subscription_that_delivers_nothing_is_detected(redis: RedisServer) -> None:
    """A subscription that receives nothing on a live connection would not be detected."""
    async with running(redis, timeout=1.0) as nodes:
        follower = Follower(nodes[0])
        before = set(pubsub_clients(redis))
        # As if the server had forgotten the subscription: nothing else on this connection would tell.
        original = nodes[0]._event_log.canary_channel
        nodes[0]._event_log.canary_channel = b"sse-gateway:{sse}:canary:nobody"
        await eventually(lambda: not nodes[0].is_up)
        nodes[0]._event_log.canary_channel = original
        await eventually(lambda: nodes[0].is_up)
        assert set(pubsub_clients(redis)) != before
        await appended(nodes[1])
        await follower.until(1)


def pubsub_clients(redis: RedisServer) -> list[str]:
    """Return the ids of the followers' connections."""
    with contextlib.closing(redis.client()) as client:
        return [str(each["id"]) for each in client.client_list(_type="pubsub")]


async def test_connections_are_bounded_counted_and_closed(redis: RedisServer) -> None:
    """Many reads would exceed max_connections, or leave idle connections open."""
    limits = PoolConfig.model_validate({"max_connections": 3, "idle": "1ms", "wait": "1m"})
    broker = make(redis.url, "sse", limits=limits)
    await start(broker)
    await asyncio.gather(*(broker.read({"c": ZERO}, FAR, 1) for _ in range(50)))
    in_use, opened = broker.count_connections()
    assert in_use <= 3
    assert 2 <= opened <= 3
    await seen_by_monitors([broker], lambda: broker.count_connections() == (0, 0))
    await broker.close()


async def test_a_busy_pool_is_unavailable_and_no_queue(redis: RedisServer) -> None:
    """A caller would wait for ever for a connection of a busy pool."""
    broker = make(redis.url, "sse", limits=PoolConfig.model_validate({"max_connections": 1, "wait": "100ms"}))
    await start(broker)
    assert broker._connection._pool is not None
    taken = await broker._connection._pool.get_connection()  # type: ignore[no-untyped-call]
    with pytest.raises(Unavailable, match="No connection available"):
        await broker.read_log_head()
    assert broker.is_up
    await broker._connection._pool.release(taken)
    await broker.read_log_head()
    await broker.close()


async def test_a_wrong_password_ends_the_start(redis: RedisServer) -> None:
    """A wrong password would look like a Redis that is late."""
    command(redis, "CONFIG", "SET", "requirepass", "secret")
    broker = make(redis.url.replace("redis://", "redis://:wrong@"), "sse")
    with pytest.raises(StartupError, match=r"broker.url.*invalid username-password") as error:
        await broker.start()
    assert "wrong" not in str(error.value).replace("wrongpass", "")
    await broker.close()


async def test_a_redis_that_comes_late(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway would not start before Redis, or not notice it later."""
    monkeypatch.setattr("gateway.broker.redis.broker.START_TIMEOUT_SECONDS", 0.3)
    redis.kill()
    broker = make(redis.url, "sse")
    await broker.start()
    assert not broker.is_up
    assert broker.head == ZERO
    redis.start()
    await eventually(lambda: broker.is_up)
    assert broker.head > ZERO
    await broker.close()


async def test_a_log_behind_tls(redis: RedisServer, tmp_path: Path) -> None:
    """rediss:// with a private certificate authority would not connect."""
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with tunnel(redis.port, context) as port:
        broker = make(f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}", "sse")
        await start(broker)
        follower = Follower(broker)
        await broker.append([draft("c")])
        await follower.until(1)
        await broker.close()
