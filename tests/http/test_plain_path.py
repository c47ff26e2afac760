"""With an aiohttp that lacks its private parts everything is served, and one log line says what it costs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from structlog.testing import capture_logs

from gateway.http import aiohttp_protocol as protocol
from gateway.http import fast_path as front
from gateway.observability.log_throttle import LogThrottle
from gateway.streams import upgrade as takeover
from gateway.streams.connection import StreamConnection
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "limits": {"connections_per_address": 5},
    "server": {"trusted_proxies": ["192.0.2.9"]},
    "timeouts": {"request": "2s", "heartbeat": "1s"},
    "channels": {"private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"}},
}

pytestmark = pytest.mark.idle_clock


def no_parser(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(front, "HttpRequestParser", None)


def another_parser(patch: pytest.MonkeyPatch) -> None:
    """A parser whose messages have other fields."""
    patch.setattr(front, "HttpRequestParser", lambda *_, **__: object())


def no_handover(patch: pytest.MonkeyPatch) -> None:
    def refuse(handler: Any) -> None:
        raise AttributeError("'RequestHandler' object has no attribute 'transport'")

    patch.setattr(takeover, "_detach_handler", refuse)


def closing_handover(patch: pytest.MonkeyPatch) -> None:
    """One that ends the connection with its protocol."""
    patch.setattr(takeover, "_detach_handler", lambda handler: handler.connection_lost(None))


def no_errors(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(protocol, "_ErrInfo", None)


def no_descriptor(patch: pytest.MonkeyPatch) -> None:
    """A loop that shows no socket: `StreamConnection.fd` is -1 then."""
    patch.setattr(StreamConnection, "fd", property(lambda self: -1))


def everything(patch: pytest.MonkeyPatch) -> None:
    for each in (no_parser, no_handover, no_errors, no_descriptor):
        each(patch)


PARTS = {
    no_parser: 1, another_parser: 1, no_handover: 1, closing_handover: 1, no_errors: 0, no_descriptor: 0, everything: 2,
}  # fmt: skip
"""What is missing, and how many lines say so: one for each part whose loss costs something."""


@asynccontextmanager
async def without(part: Any, patch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """Run a gateway without a part of aiohttp; the log must mention it once."""
    patch.setattr(takeover, "_log_throttle", LogThrottle())
    patch.setattr(takeover, "CLOSE_POLL_SECONDS", 0.02)
    part(patch)
    with capture_logs() as logs:
        async with gateway_running(CONFIG) as gateway:
            told = [line for line in logs if line["event"] == "fast_path_disabled"]
            assert len(told) == PARTS[part], told
            yield gateway


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
async def test_streams_are_served_without(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open, receive, resume, be refused, be counted, leave, and be ended: what a stream is for."""
    token = jwt.encode({"exp": time.time() + 600, "channels": ["private"]}, SECRET)
    async with without(part, monkeypatch) as gateway:
        (first,) = await gateway.post("orders", "1")
        stream = await gateway.subscribe("/events/orders")
        (second,) = await gateway.post("orders", "2")
        assert (await stream.next()).id == second
        again = await gateway.subscribe("/events/orders", {"Last-Event-ID": first})
        assert (await again.next()).id == second
        assert (await gateway.open("/events/private")).status == 401
        await gateway.subscribe("/events/private", {"Authorization": f"Bearer {token}"})
        for _ in range(2):
            await gateway.subscribe("/events/orders?channel=news")
        assert (await (await gateway.open("/events/orders")).next()).json["reason"] == "address_limit"
        ids = [(await gateway.post("news", str(number)))[0] for number in range(20)]
        received = [(await gateway.streams[-2].next()).id for _ in ids]
        assert received == ids
        for each in gateway.streams:
            each.close()
        await eventually(lambda: not gateway.daemon.streams.active)
        peer = gateway.daemon.limits.addresses.usage_of("127.0.0.1")
        assert peer is not None
        await eventually(lambda: peer.stream_count == 0)
        await eventually(
            lambda: gateway.daemon.public_listener.request_connections <= 1
        )  # the connection of posts
        last = await gateway.subscribe("/events/orders")
        await gateway.daemon.stop()
        assert (await last.next()).json["reason"] == "draining"


@pytest.mark.parametrize("part", [no_errors, everything], ids=lambda part: part.__name__)
async def test_no_other_version_is_answered_in_it(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the answer that says why, the connection ends."""
    async with without(part, monkeypatch) as gateway:
        for port in (gateway.port, gateway.daemon.admin_listener.port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /events/orders HTTP/2.0\r\nHost: localhost\r\n\r\n")
            async with safety_net():
                assert b"HTTP/2.0" not in await reader.read()
            writer.close()
