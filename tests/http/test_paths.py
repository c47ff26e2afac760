"""The paths of the public port: slashes too many, a base path, and health."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from gateway.cli.check.explain import explain
from gateway.cli.terminal.endpoint import local_url
from tests.support.config import loads
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import BASE as BASE_CONFIG
from tests.support.gateway import Gateway, eventually, gateway_running, merged

ORIGIN = {"Origin": "https://a.example"}
CONFIG: dict[str, Any] = {"cors": {"origins": ["https://a.example"]}}
WAYS: dict[str, dict[str, str]] = {"front": {}, "aiohttp": {"Content-Length": "0"}}
SLASHED = ["/events/orders/", "//events/orders", "/events//orders", "///events///orders///"]
SLASHED += ["/events/?channel=orders", "//events?channel=orders", "/events///?channel=orders"]
BELOW = [
    "/sse/events/orders",
    "//sse/events/orders/",
    "/sse//events?channel=orders",
    "/sse/events/user.1%2F2",
]
BASE: dict[str, Any] = {
    **CONFIG,
    "server": {"base_path": "/sse"},
    "channels": {"user.{id}": {"from": [{"source": "hooks", "topic": "user.{id}"}], "access": "public"}},
}


async def raw(gateway: Gateway, request: str) -> tuple[int, dict[str, str]]:
    """Return status and headers; the path is sent as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(f"{request}\r\nHost: x\r\n".encode())
        writer.write("".join(f"{name}: {value}\r\n" for name, value in ORIGIN.items()).encode() + b"\r\n")
        async with safety_net():
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
    status, *lines = head.strip().split("\r\n")
    return int(status.split()[1]), {
        name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", SLASHED)
async def test_slashes_too_many_are_none(gateway: Gateway, way: str, path: str) -> None:
    """A 404 ends an EventSource for good, and /events/ + /orders is easily written."""
    stream = await gateway.open(path, WAYS[way])
    assert stream.status == 200
    assert (await stream.next()).json["channels"] == ["orders"]


@pytest.mark.parametrize("path", SLASHED)
async def test_head_and_preflight_take_them_too(path: str) -> None:
    """A failed preflight keeps a page from sending any request."""
    async with gateway_running(CONFIG) as gateway:
        status, headers = await raw(gateway, f"HEAD {path} HTTP/1.1")
        assert (status, headers["access-control-allow-origin"]) == (200, ORIGIN["Origin"])
        preflight = f"OPTIONS {path} HTTP/1.1\r\nAccess-Control-Request-Method: GET"
        status, headers = await raw(gateway, preflight)
        assert (status, headers["access-control-allow-origin"]) == (200, ORIGIN["Origin"])
        assert (await raw(gateway, f"OPTIONS {path} HTTP/1.1"))[0] == 204


async def test_what_is_no_stream_stays_none(gateway: Gateway) -> None:
    """Only repeated slashes are accepted: any other path is still an error."""
    for path in ("/events/a/b", "/event/orders", "/events/orders/x/", "/x//events/orders"):
        assert (await gateway.open(path)).status == 404


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", BELOW)
async def test_all_is_below_the_base_path(way: str, path: str) -> None:
    """A proxy that cannot take a prefix off passes it on."""
    async with gateway_running(BASE) as gateway:
        stream = await gateway.open(path, WAYS[way])
        assert stream.status == 200
        assert (await stream.next()).json["channels"] == ["user.1/2" if "user" in path else "orders"]
        assert (await gateway.open(path.replace("sse", ""))).status == 404


async def test_the_other_routes_are_below_it_too() -> None:
    """Webhooks, tickets, answers and the client must be where the streams are."""
    config = {
        **BASE,
        "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}, "tickets": {}},
    }
    async with gateway_running(config) as gateway:
        base = f"{gateway.url}/sse"
        session = gateway.session
        async with session.post(f"{base}/hooks/hooks?topic=orders", data="1") as answer:
            assert answer.status == 200
        async with session.post(f"{base}/tickets?channel=orders", headers=ORIGIN) as answer:
            assert answer.status != 404
            assert answer.headers["Vary"] == "Origin"
        async with session.post(f"{base}/streams/{'0' * 24}/ack", data="x") as answer:
            assert answer.status == 403
        async with session.get(f"{base}/client.js") as answer:
            versioned = answer.headers["Content-Location"]
        async with session.get(f"{base}/{versioned}") as answer:
            assert "immutable" in answer.headers["Cache-Control"]
        for path in ("/hooks/hooks?topic=orders", "/tickets?channel=orders", "/client.js"):
            async with session.post(f"{gateway.url}{path}") as answer:
                assert answer.status == 404
        assert gateway.daemon.config.server.public_url(gateway.port) == base


async def health(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, await answer.json()


@pytest.mark.parametrize("base", ["", "/sse"])
async def test_health_is_on_the_public_port_where_it_is_wanted(base: str) -> None:
    """A platform with one port probes that one; strangers learn no more than the status."""
    server = {"health_on_public": True, "base_path": base}
    config = {"server": server, "limits": {"connect_rate_per_address": "1/h"}}
    async with gateway_running(config) as gateway:
        for _ in range(5):  # no requests for streams, which would be too many
            assert await health(f"{gateway.url}{base}/healthz") == (200, {"alive": True})
            assert await health(f"{gateway.url}{base}/readyz/") == (200, {"ready": True})
        assert (await gateway.open(f"{base}/events/orders")).status == 200


async def test_health_is_told_in_a_drain_too() -> None:
    """A platform that probes on an open connection must learn of a drain, and not see a reset."""
    over = {"server": {"health_on_public": True}, "timeouts": {"drain": "30s", "pre_drain": "30s"}}
    async with gateway_running(over) as gateway:
        running = asyncio.create_task(gateway.daemon.shutdown.run(_nothing, lambda: 0))
        gateway.daemon.drain()
        try:

            async def is_unready() -> bool:
                return await health(f"{gateway.url}/readyz") == (503, {"ready": False})

            await eventually(is_unready)
            assert await health(f"{gateway.url}/healthz") == (200, {"alive": True})
        finally:
            running.cancel()


async def _nothing() -> None:
    """Stop nothing."""


async def test_health_is_private_unless_it_is_asked_for(gateway: Gateway) -> None:
    """By default the public port has no health paths."""
    for path in ("/healthz", "/readyz"):
        stream = await Stream.open(gateway.port, path)
        assert stream.status == 404
        stream.close()


def test_commands_find_the_base_path() -> None:
    """tail and publish find the local gateway below its base path, and check shows the URL."""
    text = json.dumps(merged(BASE_CONFIG, {"server": {"listen": "*:8080", "base_path": "/sse/"}}))
    config = loads(text, environ={})
    assert local_url(config) == "http://127.0.0.1:8080/sse"
    assert "http://*:8080/sse; admin" in explain(config)
