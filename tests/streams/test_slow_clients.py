"""Clients that never read, vanish, or leave: bounded memory, noticed in time, and nobody else's problem."""

import asyncio
import json
import socket
from typing import Any

import pytest

from gateway.core.clock import unix_ms
from gateway.streams.connection import HIGH_WATER_BYTES
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.idle_clock

BIG = json.dumps("x" * 20_000)

PATIENT: dict[str, Any] = {"timeouts": {"write": "1h"}}
"""For tests in which a client reads nothing for as long as the test takes. The kernel's deadline for what is not
acknowledged, which is the same, is on no clock of ours."""


async def never_reading(gateway: Gateway, path: str) -> socket.socket:
    """Open a stream with a tiny receive buffer and read nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", gateway.port))
    await loop.sock_sendall(client, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await eventually(lambda: gateway.daemon.streams.active)
    return client


async def flood(gateway: Gateway, count: int) -> None:
    for _ in range(count):
        await gateway.post("orders", BIG)


async def test_a_client_that_never_reads_is_bounded_and_cut_after_the_write_timeout() -> None:
    """Its buffers hold a known amount while 6 MB are published; then it is gone and the gauge is back at 0."""
    async with gateway_running({"timeouts": {"write": "1s"}}) as gateway:
        client = await never_reading(gateway, "/events/orders")
        (stream,) = gateway.daemon.streams.active
        largest = 0
        for _ in range(300):
            await gateway.post("orders", BIG)
            if stream in gateway.daemon.streams.active:
                largest = max(largest, stream.transport.get_write_buffer_size())
        assert 0 < largest <= HIGH_WATER_BYTES + 64 * 1024 + 1024
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await gateway.metric("active_connections") == 0
        cut = await gateway.metric('disconnects_total{reason="write_timeout"}')
        lost = await gateway.metric('disconnects_total{reason="client_lost"}')  # the kernel's own deadline
        assert cut + lost == 1
        client.close()


async def test_others_get_everything_while_one_does_not_read() -> None:
    """Guarantee 5: a slow client harms only itself."""
    async with gateway_running(PATIENT) as gateway:
        client = await never_reading(gateway, "/events/orders")
        reader = await gateway.subscribe("/events/orders")
        ids = []
        for _ in range(200):
            ids += await gateway.post("orders", BIG)
            assert (await reader.next()).id == ids[-1]
        assert await gateway.metric("lagging_streams") == 1
        client.close()


async def test_a_client_that_pauses_and_reads_on_gets_every_event_once() -> None:
    """Pausing costs a cursor: what it missed comes from the ring, in order, without a seam."""
    async with gateway_running(PATIENT) as gateway:
        client = await never_reading(gateway, "/events/orders")
        ids = []
        for _ in range(150):
            ids += await gateway.post("orders", BIG)
        (stream,) = gateway.daemon.streams.active
        assert stream.is_paused
        got = Stream(*await asyncio.open_connection(sock=client))
        head = await got._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        got.headers = {"transfer-encoding": "chunked"}
        live = asyncio.create_task(flood(gateway, 20))
        await got.next()
        received = [(await got.next()).id for _ in range(150)]
        assert received == ids
        await live
        later = [(await got.next()).id for _ in range(20)]
        assert later == sorted(later)
        assert await gateway.metric("replayed_events_total") > 0
        await eventually(lambda: stream.audience is not None)
        got.close()


@pytest.mark.parametrize("policy", ["disconnect", "skip"])
async def test_falling_off_the_history_follows_the_channels_policy(policy: str) -> None:
    """disconnect ends the stream with a reason; skip tells the gap and goes on with the oldest held."""
    over = {
        **PATIENT,
        "channels": {"orders": {"history": {"events": 3}, "slow_client": policy}},
        "limits": {"history_bytes": "500KB"},
    }
    async with gateway_running(over) as gateway:
        client = await never_reading(gateway, "/events/orders")
        ids = []
        for _ in range(150):
            ids += await gateway.post("orders", BIG)
        got = Stream(*await asyncio.open_connection(sock=client))
        await got._reader.readuntil(b"\r\n\r\n")
        got.headers = {"transfer-encoding": "chunked"}
        if policy == "disconnect":
            close = await got.until("stream.close")
            assert close.json == {"reason": "slow_client", "reconnect": True}
            await got.rest()
            assert got.ended
            assert not got.parser.torn
        else:
            gap = await got.until("stream.gap")
            assert gap.json["reason"] == "slow_client"
            assert gap.json["oldest"] == ids[-3]
            assert [(await got.next()).id for _ in range(3)] == ids[-3:]
        assert await gateway.metric('gaps_total{reason="slow_client"}') == (policy == "skip")
        got.close()


@pytest.mark.parametrize(
    ("policy", "keys"), [("conflate", 1), ({"conflate": "{/symbol}"}, 3)], ids=["by type", "by key"]
)
async def test_a_slow_client_of_a_state_gets_the_newest_of_each_key(policy: object, keys: int) -> None:
    """What was superseded while it did not read is not sent; the others and the order are those of the log."""
    over = {**PATIENT, "channels": {"orders": {"slow_client": policy}}}
    async with gateway_running(over) as gateway:
        client = await never_reading(gateway, "/events/orders")
        reader = await gateway.subscribe("/events/orders")
        ids: list[str] = []
        for number in range(150):
            body = json.dumps({"symbol": "ABC"[number % 3], "n": number, "text": "x" * 20_000})
            ids += await gateway.post("orders", body)
            assert (await reader.next()).id == ids[-1], "who reads gets everything"
        got = Stream(*await asyncio.open_connection(sock=client))
        await got._reader.readuntil(b"\r\n\r\n")
        got.headers = {"transfer-encoding": "chunked"}
        received = [await got.until("message")]
        while received[-1].id != ids[-1]:
            received.append(await got.next())
        order = [message.id for message in received]
        assert order == sorted(order, key=ids.index)
        assert all(message.type == "message" for message in received), "no gap is told: nothing is missing"
        assert order[-keys:] == ids[-keys:]
        assert len(order) < 60
        spared = await gateway.metric("conflated_events_total")
        assert spared == len(ids) - len(order)
        resumed = await gateway.open("/events/orders", {"Last-Event-ID": ids[100]})
        await resumed.next()
        assert [(await resumed.next()).id for _ in range(49)] == ids[101:], "who comes back gets all of it"
        got.close()


async def test_conflation_respects_the_types_that_a_stream_asked_for() -> None:
    """An event may only be superseded by one that its stream gets."""
    over = {**PATIENT, "channels": {"orders": {"payload": "envelope", "slow_client": {"conflate": "{/id}"}}}}
    async with gateway_running(over) as gateway:
        client = await never_reading(gateway, "/events/orders?types=price")
        big = "x" * 20_000
        for number in range(120):
            for type in ("price", "note"):
                payload = {"id": 1, "n": number, "text": big}
                await gateway.post("orders", json.dumps({"type": type, "payload": payload}))
        got = Stream(*await asyncio.open_connection(sock=client))
        await got._reader.readuntil(b"\r\n\r\n")
        got.headers = {"transfer-encoding": "chunked"}
        last = await got.until("price")
        while last.json["payload"]["n"] != 119:
            last = await got.next()
            assert last.type == "price"
        assert await gateway.metric("conflated_events_total") > 0
        got.close()


async def test_how_far_the_slowest_lags_is_told() -> None:
    """An operator sees lag grow before anybody is cut."""
    async with gateway_running(PATIENT) as gateway:
        assert await gateway.metric("lag_seconds") == 0
        client = await never_reading(gateway, "/events/orders")
        for _ in range(60):
            await gateway.post("orders", BIG)
        (stream,) = gateway.daemon.streams.active
        await eventually(lambda: unix_ms() >= stream.cursor.ms + 100)
        await gateway.post("orders", "1")
        assert await gateway.metric("lagging_streams") == 1
        lag = (gateway.daemon.hub.head.ms - stream.cursor.ms) / 1000
        assert await gateway.metric("lag_seconds") == pytest.approx(lag)
        assert lag >= 0.1
        client.close()


async def test_a_client_that_closes_while_idle_is_noticed_at_once(gateway: Gateway) -> None:
    """No event and no heartbeat is needed to see a FIN or a reset."""
    for rude in (False, True):
        stream = await gateway.subscribe("/events/orders")
        assert await gateway.metric("active_connections") == 1
        if rude:
            stream.close()
        else:
            stream.writer.close()
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await gateway.metric("active_connections") == 0
    assert gateway.daemon.hub.channels == {}, "nothing is kept for channels that nobody watches"


async def test_a_client_that_sends_garbage_on_its_stream_is_cut(gateway: Gateway) -> None:
    """A stream takes no input; a little is ignored, a flood is not read for ever."""
    stream = await gateway.subscribe("/events/orders")
    stream.writer.write(b"hello?")
    await gateway.post("orders", "1")
    assert (await stream.next()).json["payload"] == 1
    stream.writer.write(b"x" * 200_000)
    await eventually(lambda: not gateway.daemon.streams.active)
    assert await gateway.metric('disconnects_total{reason="unexpected_input"}') == 1


async def test_a_slow_but_steady_reader_is_not_cut() -> None:
    """write is about taking nothing: whoever takes a little all the time stays, though buffers stay full."""
    async with gateway_running({"timeouts": {"write": "10s"}}) as gateway:
        client = await never_reading(gateway, "/events/orders")
        loop = asyncio.get_running_loop()
        (stream,) = gateway.daemon.streams.active
        # The kernel's own deadline goes by the real clock.
        stream.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        await flood(gateway, 60)
        assert stream.is_paused
        until = loop.time() + 30
        while loop.time() < until:
            await loop.sock_recv(client, 3000)
            await asyncio.sleep(0.5)
        assert stream in gateway.daemon.streams.active
        assert stream.is_paused, "or nothing is shown: its buffers were full all the time"
        client.close()
