"""Heartbeats, maximum age, limits and the end of a stream."""

import asyncio
import itertools

import pytest

from gateway.core.sse import HEARTBEAT_COMMENT
from gateway.streams.registry import DRAIN_STREAMS_PER_SECOND
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import eventually, gateway_running

pytestmark = pytest.mark.idle_clock


async def beats(stream: Stream, count: int) -> list[float]:
    """Return when the next comments arrived."""
    loop, times = asyncio.get_running_loop(), []
    for _ in range(count):
        seen = stream.parser.comments
        async with safety_net():
            while stream.parser.comments == seen:
                await stream.read()
        times.append(loop.time())
    return times


async def test_idle_streams_get_a_comment_and_busy_ones_do_not() -> None:
    """A heartbeat is for silence: it is the bare line ':' and nothing that fires an event."""
    async with gateway_running({"timeouts": {"heartbeat": "2s"}}) as gateway:
        idle = await gateway.subscribe("/events/stock")
        busy = await gateway.subscribe("/events/orders")
        for _ in range(20):
            await gateway.post("orders", "1")
            await asyncio.sleep(0.05)
        await beats(idle, 1)
        while len([message for message in busy.messages if message.type == "message"]) < 20:
            await busy.read()
        assert busy.parser.comments == 0
        assert idle.body.endswith(HEARTBEAT_COMMENT)
        assert len(idle.messages) == 1


async def test_an_idle_stream_gets_one_heartbeat_per_interval() -> None:
    """Never silent for longer, and not twice as often either: 15,000 idle streams cost what they must."""
    async with gateway_running({"timeouts": {"heartbeat": "1s"}}) as gateway:
        stream = await gateway.subscribe("/events/stock")
        times = await beats(stream, 5)
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert sum(gaps) / len(gaps) > 0.8, gaps
        assert stream.parser.comments == 5


async def test_heartbeats_can_be_events() -> None:
    """heartbeat=event: for pages that want to see that the stream lives."""
    async with gateway_running({"timeouts": {"heartbeat": "200ms"}}) as gateway:
        stream = await gateway.subscribe("/events/orders?heartbeat=event")
        assert (await stream.next()).type == "stream.heartbeat"
        old = await gateway.subscribe("/events/orders", version="1.0")
        await beats(old, 2)
        assert not old.parser.torn


async def test_an_old_stream_is_ended_with_a_reason() -> None:
    """timeouts.connection: closed between two events, with a jittered retry, and counted."""
    async with gateway_running({"timeouts": {"heartbeat": "200ms", "connection": "300ms"}}) as gateway:
        stream = await gateway.subscribe("/events/orders")
        close = await stream.until("stream.close")
        assert close.json == {"reason": "max_age", "reconnect": True}
        assert stream.parser.retry is not None
        assert 1500 <= stream.parser.retry <= 4500
        await stream.rest()
        assert stream.ended
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await gateway.metric('disconnects_total{reason="max_age"}') == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_full_node_answers_200_and_says_come_back(version: str) -> None:
    """A browser gives up for good on a 503; so overload is a stream that ends at once."""
    async with gateway_running(
        {"limits": {"connections": 2}, "cors": {"origins": ["https://a.example"]}}
    ) as gateway:
        held = [await gateway.subscribe("/events/orders") for _ in range(2)]
        refused = await gateway.open("/events/orders", {"Origin": "https://a.example"}, version=version)
        assert refused.status == 200
        assert refused.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        close = await refused.next()
        assert (close.type, close.json) == ("stream.close", {"reason": "overloaded", "reconnect": True})
        assert refused.parser.retry is not None
        assert await gateway.metric('refused_total{reason="overloaded"}') == 1
        assert await gateway.metric("active_connections") == 2
        held[0].close()
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        await gateway.subscribe("/events/orders")


@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_client_that_is_sent_away_keeps_its_id(where: str) -> None:
    """eventsource-client (Rust) takes a stream without an id for one that resets it: then it resumes nowhere."""
    async with gateway_running({"limits": {"connections": 1}}) as gateway:
        await gateway.subscribe("/events/orders")
        headers = {"Last-Event-ID": "1795804091782-3"} if where == "header" else {}
        query = "?lastEventId=1795804091782-3" if where == "query" else ""
        refused = await gateway.open(f"/events/orders{query}", headers)
        assert (await refused.next()).id == "1795804091782-3"
        for others in ({}, {"Last-Event-ID": "what?"}):
            refused = await gateway.open("/events/orders", others)
            assert (await refused.next()).type == "stream.close"
            assert b"\nid:" not in refused.body


async def test_a_drain_ends_every_stream_at_a_boundary_and_refuses_new_ones() -> None:
    """Guarantee 8: closed at an event boundary, with a reason; closes are spread over the drain time."""
    async with gateway_running() as gateway:
        streams = [await gateway.subscribe("/events/orders") for _ in range(40)]
        kept = await asyncio.open_connection("127.0.0.1", gateway.port)
        kept[1].write(b"HEAD /events/orders HTTP/1.1\r\nHost: x\r\n\r\n")
        await kept[0].readuntil(b"\r\n\r\n")
        drain = asyncio.create_task(gateway.daemon.streams.drain(1.0))
        await eventually(lambda: 0 < len(gateway.daemon.streams.active) < 40)
        status, ready = await gateway.admin("/readyz")
        assert (status, ready["not_ready"]) == (503, ["draining"])
        kept[1].write(b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"reason":"draining"' in await kept[0].readuntil(b"\n\n")
        await gateway.post("orders", "1")
        retries = set()
        for stream in streams:
            await stream.rest()
            assert stream.ended
            assert not stream.parser.torn
            assert stream.messages[-1].json == {"reason": "draining", "reconnect": True}
            retries.add(stream.parser.retry)
        assert len(retries) > 20, "retry is jittered, or all would come back together"
        await drain
        kept[1].transport.abort()


async def test_a_drain_lasts_no_longer_than_its_streams_need() -> None:
    """Ctrl-C with a few pages open took most of `timeouts.drain`; and all at once would be a herd."""
    async with gateway_running() as gateway:
        streams = [await gateway.subscribe("/events/orders") for _ in range(50)]
        loop = asyncio.get_running_loop()
        began = loop.time()
        drain = asyncio.create_task(gateway.daemon.streams.drain(3600))
        ends = []
        for stream in streams:
            await stream.rest()
            ends.append(loop.time() - began)
        await drain
        assert (
            0.8 * len(streams) / DRAIN_STREAMS_PER_SECOND
            < max(ends)
            < 2 * len(streams) / DRAIN_STREAMS_PER_SECOND
        )


async def test_stopping_twice_is_harmless() -> None:
    """Shutdown paths cross."""
    async with gateway_running() as gateway:
        await gateway.subscribe("/events/orders")
        await gateway.daemon.stop()
        await gateway.daemon.stop()


async def test_nothing_is_kept_of_channels_that_nobody_watches_any_more() -> None:
    """A node must not remember every template instance that anybody ever watched."""
    async with gateway_running(
        {
            "channels": {
                "u.{id}": {
                    "from": [{"source": "hooks", "topic": "u:{id}"}],
                    "access": "public",
                    "history": "none",
                }
            }
        }
    ) as other:
        for first in range(0, 1000, 50):
            names = ",".join(f"u.{number}" for number in range(first, first + 50))
            stream = await other.subscribe(f"/events?channel={names}")
            stream.close()
        await eventually(lambda: not other.daemon.streams.active)
        assert not other.daemon.hub.channels
        assert not other.daemon.hub._audiences
        assert other.daemon.hub._ring.channel_count == 0


async def test_streams_beyond_the_rate_are_told_to_come_back_later() -> None:
    """limits.connect_rate: a herd is let in bit by bit; each refused one gets a time of its own."""
    async with gateway_running({"limits": {"connect_rate": "5/m"}}) as gateway:
        streams = [await gateway.open("/events/orders") for _ in range(12)]
        first = [await stream.next() for stream in streams]
        refused = [
            stream for stream, message in zip(streams, first, strict=True) if message.type == "stream.close"
        ]
        assert len(refused) >= 10, "the first ones find the bucket full"
        assert {stream.status for stream in refused} == {200}
        assert all(
            message.json == {"reason": "connect_rate", "reconnect": True}
            for message in first
            if message.id == ""
        )
        assert len({stream.parser.retry for stream in refused}) > 1
        assert await gateway.metric('refused_total{reason="connect_rate"}') == len(refused)
        assert await gateway.metric("active_connections") == 12 - len(refused) > 0
