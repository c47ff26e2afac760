"""Requests for streams behave the same on the fast path and on aiohttp's."""

import asyncio
import json
import re
from typing import Any

import jwt
import pytest

from gateway.config.channel_catalog import ChannelCatalog
from gateway.core.errors import Unavailable
from gateway.http.cors import CorsPolicy
from gateway.http.fast_path import MAX_HEAD_BYTES
from gateway.http.routes.subscribe import SubscribeHandler
from tests.support.config import loads
from tests.support.deadline import safety_net
from tests.support.gateway import BASE, Gateway, eventually, gateway_running, merged

SECRET = "s" * 32
TOKEN = jwt.encode({"exp": 9_999_999_999, "channels": ["private"]}, SECRET)
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "cors": {"origins": ["https://*.example.com"], "credentials": True},
    "channels": {
        "private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"},
        "user.{id}": {"from": [{"source": "hooks", "topic": "user.{id}"}], "access": "public"},
    },
}
PLAIN = b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n"

REQUESTS = {
    "plain": ("/events/orders", {}),
    "several": ("/events?channel=stock&channel=orders,news", {}),
    "template": ("/events/user.17", {}),
    "quoted": ("/events/user.%31%37", {}),
    "origin": ("/events/orders", {"Origin": "https://a.example.com"}),
    "strange origin": ("/events/orders", {"Origin": "https://evil.test"}),
    "strange bytes": ("/events/orders", {"Origin": "https://\xff.example.com"}),
    "token": ("/events/private", {"Authorization": f"Bearer {TOKEN}"}),
    "bad token": ("/events/private", {"Authorization": "Bearer no", "Origin": "https://a.example.com"}),
    "no token": ("/events/private", {}),
    "unknown channel": ("/events/nothing", {"Origin": "https://a.example.com"}),
    "no channel": ("/events", {}),
    "no route": ("/events/a/b", {}),
    "bad query": ("/events/orders?last=x", {}),
    "heartbeat": ("/events/orders?heartbeat=event&types=a&format=data", {}),
    "future id": ("/events/orders", {"Last-Event-ID": "99999999999999-0"}),
    "forged id": ("/events/orders", {"Last-Event-ID": "what?"}),
    "old id": ("/events/orders", {"Last-Event-ID": "1-0"}),
    "last": ("/events/orders?last=5", {}),
    "HEAD": ("/events/orders", {"Origin": "https://a.example.com"}),
}


def request(name: str, version: str = "1.1") -> bytes:
    """Return one of the requests as bytes."""
    path, headers = REQUESTS[name]
    method = "HEAD" if name == "HEAD" else "GET"
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *(f"{key}: {v}" for key, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def answer(gateway: Gateway, *pieces: bytes, before: bytes = b"") -> tuple[str, dict[str, str], bytes]:
    """Return status line, headers and the first bytes of the body, without what differs by nature."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    if before:
        writer.write(before)
        await reader.readuntil(b"not_found")
        await reader.readuntil(b"}\n")
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.005)
    async with safety_net():
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        body = (
            b""
            if head.startswith("HTTP/1.1 200 OK\r\n") and pieces[0][:4] == b"HEAD"
            else await body_of(reader)
        )
    for last in (b"stream.gap", b"stream.open"):  # what follows may come in the same piece, or not
        if last in body:
            body = body[: body.index(b"\n\n", body.index(last)) + 2]
            break
    writer.transport.abort()
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
    for name in ("date", "connection", "keep-alive"):
        headers.pop(name, None)
    return first[9:], headers, re.sub(rb'[0-9a-f]{24}|"message":.*|[0-9]{13}-[0-9]+', b"_", body)


async def body_of(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the client would have the first block, or the end."""
    body = b""
    while not body.endswith((b"\n\n", b"\n\n\r\n", b"}\n")):
        part = await reader.read(65536)
        if not part:
            break
        body += part
    return body


@pytest.mark.idle_clock
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_both_paths_respond_alike(version: str) -> None:
    """Status, headers and bytes: whole, in pieces, and on a connection that aiohttp had before."""
    async with gateway_running(CONFIG) as gateway:
        await gateway.post("orders", "1")
        # A path that is nobody's, so that aiohttp has the connection.
        before = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
        answers = {}
        for name in REQUESTS:
            data = request(name, version)
            answers[name] = (
                await answer(gateway, data),
                await answer(gateway, data[:5], data[5:15], data[15:]),
                await answer(gateway, data, before=before),
            )
            await eventually(lambda: not gateway.daemon.streams.active)
            assert gateway.daemon.streams._reserved_count == 0, name
            assert not gateway.daemon.hub.channels, name
        assert {name: found for name, found in answers.items() if not found[0] == found[1] == found[2]} == {}


async def test_requests_that_are_not_plainly_for_a_stream_go_to_aiohttp(gateway: Gateway) -> None:
    """Bodies, upgrades, other methods, long heads and invalid HTTP are answered as by aiohttp alone."""
    for head, status in (
        (b"POST /events/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", "405"),
        (b"GET /eventsource HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        (b"GET /events/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "200"),
        (b"GET /events/orders HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", "431"),
        (b"GET /events/orders HTTP/7.1\r\nHost: x\r\n\r\n", "505"),
        (b"GET /events/orders HTTP/2.0\r\nHost: x\r\n\r\n", "505"),
        (b"GET /events\0 HTTP/1.1\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00", "400"),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head)
        async with safety_net():
            line = await reader.readline()
        assert line.split()[1].decode() == status, head[:60]
        writer.transport.abort()


async def test_head_and_first_block_leave_in_one_write(gateway: Gateway) -> None:
    """One segment: a herd costs a write each, and a client has stream.open with the headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(PLAIN)
    first = await reader.read(65536)
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\n\n\r\n")
    writer.transport.abort()


async def test_no_task_and_nothing_of_aiohttp_is_made_for_a_stream(gateway: Gateway) -> None:
    """A task or aiohttp's objects for each stream would triple the cost of a herd."""
    tasks = len(asyncio.all_tasks())
    streams = [await gateway.subscribe("/events/orders") for _ in range(20)]
    server = gateway.daemon.public_listener._runner.server
    assert server is not None
    assert server.requests_count == 0
    assert len(asyncio.all_tasks()) == tasks
    assert gateway.daemon.public_listener.request_connections == 0
    for stream in streams:
        stream.close()


async def test_a_client_that_leaves_while_the_log_is_read(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must leave no slot, no channel and no task behind."""
    asked = asyncio.Event()

    async def never(*_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(gateway.daemon.broker, "read", never)
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(PLAIN.replace(b"Host", b"Last-Event-ID: 1-0\r\nHost"))
    await asked.wait()
    assert gateway.daemon.streams._reserved_count == 1
    assert gateway.daemon.public_listener.request_connections == 1
    writer.transport.abort()
    await eventually(lambda: gateway.daemon.streams._reserved_count == 0)
    assert not gateway.daemon.hub.channels
    assert gateway.daemon.public_listener.request_connections == 0


async def test_an_unavailable_log_is_a_stream_that_ends(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser comes back after a 200; it would never come back after a 503."""

    async def away(*_: Any) -> Any:
        raise Unavailable("gone")

    monkeypatch.setattr(gateway.daemon.broker, "read", away)
    stream = await gateway.open("/events/orders", {"Last-Event-ID": "1-0"})
    close = await stream.next()
    assert (stream.status, close.type, close.json["reason"]) == (200, "stream.close", "unavailable")
    await stream.rest()  # to the end of the connection
    await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)


async def test_the_unforeseen_costs_one_connection(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours must not leave a place behind, nor a client in the dark about its connection."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(SubscribeHandler, "open_on_transport", broken)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(PLAIN)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    assert gateway.daemon.streams._reserved_count == 0
    assert not gateway.daemon.hub.channels


@pytest.mark.parametrize(
    "head", [PLAIN.replace(b"Host", b"Connection: close\r\nHost"), PLAIN.replace(b"1.1", b"1.0")]
)
async def test_every_request_of_a_proxy_takes_the_fast_path(gateway: Gateway, head: bytes) -> None:
    """nginx sends such requests by default; a parser's state must not leak into the next request."""
    for number in range(4):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), number
        writer.transport.abort()
    server = gateway.daemon.public_listener._runner.server
    assert server is not None
    assert server.requests_count == 0


async def test_a_drain_reaches_streams_that_wait_for_the_log(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was whole gets an answer: its stream opens, and ends at once."""
    asked, answered = asyncio.Event(), asyncio.Event()
    read = gateway.daemon.broker.read

    async def slowly(*arguments: Any) -> Any:
        asked.set()
        await answered.wait()
        return await read(*arguments)

    monkeypatch.setattr(gateway.daemon.broker, "read", slowly)
    stream = asyncio.create_task(gateway.open("/events/orders", {"Last-Event-ID": "1-0"}))
    await asked.wait()
    ending = asyncio.create_task(gateway.daemon.stop())
    await eventually(lambda: gateway.daemon.streams.is_draining)
    await asyncio.sleep(0.05)
    answered.set()
    close = await (await stream).until("stream.close")
    assert close.json["reason"] == "draining"
    await ending


def test_only_short_cors_decisions_are_cached() -> None:
    """A stranger names thousands of channels before anybody counts them; that must not stay in memory."""
    config = loads(json.dumps(merged(BASE, CONFIG)), environ={})
    policy = CorsPolicy(config, ChannelCatalog(config.channels))
    for number in range(50):
        policy.refusing_rule("https://a.example.com", tuple(f"c{number}.{n}" for n in range(1000)))
        policy.refusing_rule(f"https://{number}{'x' * 1000}.example.com", ("orders",))
    assert policy._cached_refusing_rule.cache_info().currsize == 0
    assert policy.refusing_rule("https://a.example.com", ("orders",)) is None
    assert policy._cached_refusing_rule.cache_info().currsize == 1


@pytest.mark.idle_clock
async def test_half_a_head_has_the_deadline_of_a_request() -> None:
    """Slowloris: a head that trickles in ends with ``timeouts.request``, also one that looks like a stream's."""
    async with gateway_running({"timeouts": {"request": "400ms"}}) as gateway:
        for part in (b"", b"GE", PLAIN[:-2], b"POST /hooks"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(part)
            async with safety_net():
                assert await reader.read() == b"", part
            writer.close()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
