"""``client=``: a stream that its client has lost makes room for the new one."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.auth.grant import ANONYMOUS
from gateway.auth.revocation import Revocation
from gateway.broker.memory import MemoryBroker
from gateway.observability.metrics import Metrics
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, ClientLimits
from tests.support.config import loads
from tests.support.eventsource import Message, Stream
from tests.support.gateway import BASE, Gateway, eventually, gateway_running
from tests.support.redis import RedisServer

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "limits": {"connections_per_user": 1, "connections_per_address": 1, "connections": 1},
    "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
}


def bearer(subject: str) -> dict[str, str]:
    token = jwt.encode({"exp": time.time() + 86_400, "sub": subject, "channels": ["private"]}, SECRET)
    return {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.0.2.1"}


async def after_gaps(stream: Stream) -> Message:
    """Return the next message that is no gap: a client that comes back without an id has one first."""
    while (message := await stream.next()).type == "stream.gap":
        assert message.json["reason"] == "no_resume_point"
    return message


async def closing(stream: Stream) -> dict[str, Any]:
    message = await after_gaps(stream)
    assert message.type == "stream.close"
    return dict(message.json)


async def test_a_reconnect_is_never_refused_because_of_its_own_ghost() -> None:
    """With every limit at one, a client that lost its stream gets the next one at once."""
    async with gateway_running(CONFIG) as gateway:
        ghost = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        again = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        assert await closing(ghost) == {"reason": "replaced", "reconnect": False}
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        assert (await closing(again))["reason"] == "replaced"
        assert await gateway.metric('disconnects_total{reason="replaced"}') == 2


async def test_a_client_that_was_replaced_is_kept_away_for_a_day() -> None:
    """Two clients with one name that know no `stream.close` replace each other every few seconds, for ever."""
    async with gateway_running(CONFIG) as gateway:
        older = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        newer = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        assert (await closing(older))["reconnect"] is False
        assert older.parser.retry == 86_400_000
        gateway.daemon.streams.revoke(Revocation(None, None))
        assert (await closing(newer))["reconnect"] is True
        assert newer.parser.retry is not None
        assert newer.parser.retry < 10_000


async def test_without_a_name_a_ghost_counts() -> None:
    """The limits hold for those who do not say who they are."""
    async with gateway_running(CONFIG) as gateway:
        await gateway.subscribe("/events/private", bearer("1"))
        assert (await closing(await gateway.open("/events/private", bearer("1"))))[
            "reason"
        ] == "address_limit"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (bearer("1"), bearer("2")),
        ({"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}),
    ],
)
async def test_nobody_ends_the_stream_of_another(first: dict[str, str], second: dict[str, str]) -> None:
    """A name is one's own: of a user, or without one of an address."""
    config = {**CONFIG, "limits": {}}
    path = "/events/private?client=tab" if "Authorization" in first else "/events/orders?client=tab"
    async with gateway_running(config) as gateway:
        stream = await gateway.subscribe(path, first)
        await gateway.subscribe(path, second)
        await gateway.post("p" if "Authorization" in first else "orders", "1")
        assert (await stream.next()).type != "stream.close"


async def test_a_stream_that_ends_leaves_the_newer_one_alone() -> None:
    """The ghost's own end, late, must not take its successor's place along."""
    async with gateway_running(CONFIG) as gateway:
        ghost = await gateway.subscribe("/events/private?client=t", bearer("1"))
        await gateway.subscribe("/events/private?client=t", bearer("1"))
        ghost.close()
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        assert len(gateway.daemon.limits.quotas_by_client) == 1
        assert (await closing(await gateway.open("/events/private?client=u", bearer("1"))))[
            "reason"
        ] == "address_limit"


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_a_newer_stream_on_another_node_replaces_too(
    kind: str, redis: RedisServer, tmp_path: Path
) -> None:
    """A balancer sends the reconnect elsewhere; the seat is the same, so it is never in its own way."""
    url = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/log.db"
    config = {**CONFIG, "broker": {"url": url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        nodes: list[Gateway] = [one, two]
        stream = await one.subscribe("/events/private?client=t", bearer("1"))
        for turn in range(4):
            newer = await nodes[(turn + 1) % 2].subscribe("/events/private?client=t", bearer("1"))
            assert (await closing(stream))["reason"] == "replaced"
            left = nodes[turn % 2].daemon.streams
            await eventually(lambda left=left: not left.active)  # type: ignore[misc]
            stream = newer


@pytest.mark.parametrize("name", ["", "x" * 129])
async def test_names_that_are_none(name: str) -> None:
    """400 says what a name is."""
    async with gateway_running(CONFIG) as gateway:
        stream = await gateway.open(f"/events/orders?client={name}")
        assert stream.status == 400
        assert b"client=" in await stream.rest()


async def test_of_three_the_newest_lives(redis: RedisServer) -> None:
    """First here, then there, then here again, faster than nodes tell each other: the log says which is last."""
    config = {**CONFIG, "limits": {}, "broker": {"url": redis.url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        for number in range(10):
            path = f"/events/orders?client=c{number}"
            older = [await node.subscribe(path) for node in (one, two)]
            newest = await one.subscribe(path)
            for stream in older:
                assert (await closing(stream))["reason"] == "replaced"
            await eventually(lambda: len(one.daemon.streams.active) == 1 and not two.daemon.streams.active)
            await one.post("orders", "1")
            assert (await after_gaps(newest)).type == "message"
            newest.close()
            await eventually(lambda: not one.daemon.streams.active)


async def test_a_herd_is_told_of_in_a_few_notices(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an event in the log for each client that comes back."""
    config = {**CONFIG, "limits": {}, "broker": {"url": redis.url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        seen: list[Any] = []
        receive = two.daemon.hub.on_control_event
        two.daemon.hub.on_control_event = lambda event: (seen.append(event), receive(event))[1]  # type: ignore[func-returns-value]
        send, gate = one.daemon.control_channel.send, asyncio.Event()
        on_its_way = 0

        async def slowly(kind: str, about: Any) -> Any:
            nonlocal on_its_way
            on_its_way += len(about.get("replaced", ()))
            await gate.wait()
            return await send(kind, about)

        monkeypatch.setattr(one.daemon.control_channel, "send", slowly)
        herd = [asyncio.create_task(one.open(f"/events/orders?client={number}")) for number in range(200)]
        await eventually(lambda: on_its_way and on_its_way + len(one.daemon.revocation_bus._pending) == 200)
        gate.set()
        await asyncio.gather(*herd)
        await eventually(lambda: sum(event.payload.count(b"client:") for event in seen) == 200)
        assert len([event for event in seen if b"client:" in event.payload]) <= 2


async def test_a_replaced_stream_that_nobody_reads_is_gone_at_once() -> None:
    """Its place is another's: a socket that lingers would be one more than the limits allow."""
    async with gateway_running(CONFIG) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /events/orders?client=t HTTP/1.1\r\nHost: x\r\n\r\n")
        streams = gateway.daemon.streams
        await eventually(lambda: streams.active)
        (ghost,) = streams.active
        while not ghost.is_paused:
            await gateway.post("orders", '"' + "x" * 200_000 + '"')
        await gateway.subscribe("/events/orders?client=t")
        await eventually(lambda: ghost not in streams.active)
        writer.transport.abort()


async def test_names_are_each_addresss_own_where_addresses_have_no_limit() -> None:
    """Without limits nobody is counted; a name must not be the world's all the same."""
    async with gateway_running({**CONFIG, "limits": {}}) as gateway:
        limits = gateway.daemon.limits
        limits.addresses._max_streams = limits.addresses._rate_per_second = None
        stream = await gateway.subscribe("/events/orders?client=t", {"X-Forwarded-For": "198.51.100.7"})
        await gateway.subscribe("/events/orders?client=t", {"X-Forwarded-For": "203.0.113.9"})
        await gateway.post("orders", "1")
        assert (await stream.next()).type == "message"


async def gap_of(stream: Stream) -> dict[str, Any]:
    message = await stream.next()
    assert message.type == "stream.gap"
    return dict(message.json)


async def test_a_client_that_lost_its_id_is_told_a_gap(gateway: Gateway) -> None:
    """A service worker drops Last-Event-ID: without the gap, its page never learns what it missed."""
    first = await gateway.open("/events?channel=orders,stock&client=tab")
    opened = await first.next()
    assert opened.json["resume"] == "none"
    await gateway.post("orders", "1")
    assert (await first.next()).type == "message", "a first stream has no gap"
    first.close()
    await eventually(lambda: not gateway.daemon.streams.active)
    (missed,) = await gateway.post("orders", "2")
    again = await gateway.open("/events?channel=orders,stock&client=tab")
    opened = await again.next()
    assert opened.json["resume"] == "gap"
    for channel in ("orders", "stock"):
        gap = await gap_of(again)
        assert (gap["channel"], gap["reason"]) == (channel, "no_resume_point")
    assert again.parser.last_id == missed
    await gateway.post("orders", "3")
    assert (await again.next()).json["payload"] == 3
    assert await gateway.metric('gaps_total{reason="no_resume_point"}') == 2


@pytest.mark.parametrize("more", ["", "&lastEventId=1-0", "&since=1m"])
async def test_a_client_that_says_where_it_was_is_told_none(gateway: Gateway, more: str) -> None:
    """A gap that is none makes pages fetch what they have; another client's stream is none of its own."""
    (await gateway.subscribe("/events/orders?client=tab")).close()
    await eventually(lambda: not gateway.daemon.streams.active)
    client = "tab" if more else "other"
    stream = await gateway.subscribe(f"/events/orders?client={client}{more}")
    await gateway.post("orders", "1")
    while (message := await stream.next()).type == "stream.gap":
        assert message.json["reason"] != "no_resume_point"
    assert message.type == "message"


async def test_the_last_events_come_after_the_gap(gateway: Gateway) -> None:
    """last=N gives some of what was missed, and the gap says that it may not be all."""
    await gateway.post("orders", "1")
    (await gateway.subscribe("/events/orders?client=tab")).close()
    await eventually(lambda: not gateway.daemon.streams.active)
    stream = await gateway.subscribe("/events/orders?client=tab&last=1")
    assert (await gap_of(stream))["reason"] == "no_resume_point"
    assert (await stream.next()).json["payload"] == 1


async def test_a_client_that_comes_back_to_another_node_is_told(tmp_path: Path) -> None:
    """A balancer sends the reconnect elsewhere, and that node has never seen the client."""
    config = {"broker": {"url": f"sqlite:///{tmp_path}/log.db"}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        first = await one.subscribe("/events/orders?client=tab")
        await eventually(lambda: two.daemon.limits._newest_stream)
        first.close()
        stream = await two.subscribe("/events/orders?client=tab")
        assert (await gap_of(stream))["reason"] == "no_resume_point"


def test_clients_that_are_gone_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new client= with every stream, for ever, must not fill the memory."""
    monkeypatch.setattr("gateway.streams.quotas.client_limits.MAX_RECENT_CLIENTS", 10)
    config = loads(json.dumps(BASE))
    limits = ClientLimits(config.server, config.limits, MemoryBroker(history_bytes=1).shared_store, Metrics())
    for number in range(100):
        hold = limits.acquire(UNKNOWN_CALLER, ANONYMOUS, f"tab-{number}")
        hold.activate(_Ended())
        hold.release()
    assert len(limits._recently_served) == 10
    assert limits.was_recently_served(limits.acquire(UNKNOWN_CALLER, ANONYMOUS, "tab-99"))
    assert not limits.was_recently_served(limits.acquire(UNKNOWN_CALLER, ANONYMOUS, "tab-1"))


class _Ended:
    id = "0" * 24

    def close_replaced(self) -> None:
        """End, as it did."""
