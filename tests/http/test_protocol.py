"""Invalid HTTP gets a JSON error on both ports, without quotes of the request and without a log line."""

import asyncio
import gc
import io
import json
import re
from collections.abc import Iterator

import pytest
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.admin.app import ADMIN_HEADERS
from gateway.admin.status import NodeStatus
from gateway.http import responses
from gateway.http.aiohttp_protocol import MAX_HEADER_BYTES, MAX_URL_BYTES
from gateway.observability import logging as logs
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.idle_clock

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"

BAD = {
    "no HTTP": (b"nonsense c4n4ry\r\n\r\n", 400, "bad_http"),
    "TLS": (b"\x16\x03\x01\x02\x00c4n4ry\r\n\r\n", 400, "bad_http"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_http"),
    "version": (b"GET /c4n4ry HTTP/9.9\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    "HTTP/2.0": (b"GET /c4n4ry HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    "HTTP/2.0 of a stream": (b"GET /events/orders HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    "HTTP/2.0 with a body": (b"POST /hooks/hooks HTTP/2.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 505, "http_version"),
    "HTTP/0.9": (b"GET /status HTTP/0.9\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    "HTTP/0.9 of a stream": (b"GET /events/orders HTTP/0.9\r\nHost: localhost\r\n\r\n", 505, "http_version"),
    "no version": (b"GET /c4n4ry\r\n\r\n", 505, "http_version"),
    "method": (b"C4N4RY /" + HOST + b"\r\n", 400, "bad_http"),
    "NUL": (b"GET /events\0c4n4ry" + HOST + b"\r\n", 400, "bad_http"),
    "URL": (b"GET http://[c4n4ry/" + HOST + b"\r\n", 400, "bad_http"),
    "header": (b"GET /" + HOST + b"c4n4ry\r\n\r\n", 400, "bad_http"),
    "folded": (b"GET /" + HOST + b" c4n4ry\r\n\r\n", 400, "bad_http"),
    "many headers": (b"GET /" + HOST + b"X: c4n4ry\r\n" * 200 + b"\r\n", 400, "bad_http"),
    "length": (b"POST /" + HOST + b"Content-Length: c4n4ry\r\n\r\n", 400, "bad_http"),
    "two lengths": (b"POST /" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_http"),
    "chunk": (b"POST /" + HOST + b"Transfer-Encoding: chunked\r\n\r\nc4n4ry\r\n", 400, "bad_http"),
    "long URL": (b"GET /" + b"c4n4ry" * 1500 + HOST + b"\r\n", 414, "bad_http"),
    "long URL of a stream": (b"GET /events?" + b"c4n4ry" * 1500 + HOST + b"\r\n", 414, "bad_http"),
    "long header": (b"GET /" + HOST + b"X: " + b"c4n4ry" * 1500 + b"\r\n\r\n", 431, "bad_http"),
    "long name": (b"GET /" + HOST + b"c4n4ry" * 1500 + b": x\r\n\r\n", 431, "bad_http"),
    "Expect": (b"GET /events/orders" + HOST + b"Connection: close\r\nExpect: c4n4ry\r\n\r\n", 417, "expectation_failed"),
    "Expect, no route": (b"GET /c4n4ry" + HOST + b"Connection: close\r\nExpect: c4n4ry\r\n\r\n", 417, "expectation_failed"),
}  # fmt: skip


class Log:
    """The log's output at level debug."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.writer = logs.configure_logging(level="debug", format="json", file=self.file)

    def said(self) -> list[str]:
        """Return all lines but those of a start, once they are written."""
        self.writer.close()
        lines = [json.loads(line) for line in self.file.getvalue().splitlines()]
        return [str(line) for line in lines if line["event"] not in ("source_up", "listening")]


@pytest.fixture
def log() -> Iterator[Log]:
    """A log of the test's own."""
    log = Log()
    yield log
    log.writer.close()
    structlog.reset_defaults()


async def whole(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and return the answer once the connection has ended: status, headers, body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    async with safety_net():
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, body


def port_of(gateway: Gateway, which: str) -> int:
    return gateway.port if which == "public" else gateway.daemon.admin_listener.port


@pytest.mark.parametrize("which", ["public", "admin"])
async def test_what_is_no_http_gets_an_answer_of_ours(log: Log, gateway: Gateway, which: str) -> None:
    """aiohttp would quote the bytes, reveal its version, and log a traceback for each."""
    for name, (data, status, code) in BAD.items():
        found, headers, body = await whole(port_of(gateway, which), data)
        assert (found, json.loads(body)["error"]) == (status, code), name
        assert headers["content-type"] == "application/json; charset=utf-8"
        assert headers["connection"] == "close"
        assert (headers["server"], headers["x-content-type-options"]) == ("sse-gateway", "nosniff")
        assert b"c4n4ry" not in body.lower(), name
        for header, value in ADMIN_HEADERS.items():
            assert headers.get(header.lower()) == (value if which == "admin" else None)
    # A sender may have lost an event by it: one line, without its words.
    said = log.said()
    assert [line for line in said if "webhook_refused" not in line] == []
    assert len(said) == (1 if which == "public" else 0)
    assert "c4n4ry" not in str(said).lower()


async def test_a_second_request_that_is_no_http(log: Log, gateway: Gateway) -> None:
    """What stands behind a good request is read by the same rules."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /nothing" + HOST + b"\r\n")
    async with safety_net():
        await reader.readuntil(b"}\n")
        writer.write(b"c4n4ry\r\n\r\n")
        answer = await reader.read()
    assert b'"error":"bad_http"' in answer
    assert b"c4n4ry" not in answer
    writer.close()


@pytest.mark.parametrize("which", ["public", "admin"])
async def test_no_answer_is_in_a_version_that_is_not_spoken(gateway: Gateway, which: str) -> None:
    """An answer of "HTTP/2.0" over a connection of HTTP/1.1 is read by no client and no proxy."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway, which))
    writer.write(b"GET /nothing" + HOST + b"\r\nGET /nothing HTTP/2.0\r\nHost: localhost\r\n\r\n")
    async with safety_net():
        answer = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/([0-9.]+) ([0-9]{3}) ", answer) == [(b"1.1", b"404"), (b"1.0", b"505")]


async def test_a_body_that_breaks_the_rules_later() -> None:
    """The deadline of the body ends it; nothing of it is quoted, and the log stays short."""
    async with gateway_running({"timeouts": {"request": "300ms"}}) as gateway:
        file = io.StringIO()
        writer = logs.configure_logging(level="debug", format="json", file=file)
        for chunk in (b"c4n4ry\r\n", b"3\r\nabcc4n4ry\r\n"):
            reader, sending = await asyncio.open_connection("127.0.0.1", gateway.port)
            sending.write(
                b"POST /hooks/hooks?topic=orders" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n"
            )
            await asyncio.sleep(0.01)  # so that it is another read
            sending.write(chunk)
            async with safety_net():
                answers = await reader.read()
            assert b'"error":"' in answers and b"c4n4ry" not in answers
            sending.close()
        writer.close()
        assert "c4n4ry" not in file.getvalue() and "Traceback" not in file.getvalue()
        assert "connection_failed" not in file.getvalue() and "request_failed" not in file.getvalue()


async def test_a_fault_outside_of_the_middlewares_is_a_plain_500(
    log: Log, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp's own page would say which software failed; ours says no more than that it is in the log."""

    def broken(*_: object) -> None:
        raise RuntimeError("the router is broken")

    monkeypatch.setattr(gateway.daemon.public_listener._runner.app.router, "resolve", broken)
    for accept in (b"", b"Accept: text/html\r\n"):
        status, headers, body = await whole(gateway.port, b"GET /c4n4ry" + HOST + accept + b"\r\n")
        assert (status, json.loads(body)["error"]) == (500, "internal")
        assert (headers["connection"], headers["server"]) == ("close", "sse-gateway")
        assert b"router" not in body


async def test_a_fault_in_a_handler_is_a_plain_500(
    log: Log, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error page of aiohttp, whose text may change with its version."""

    async def broken(_: NodeStatus) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(NodeStatus, "status_report", broken)
    status, _, body = await whole(
        gateway.daemon.admin_listener.port, b"GET /status?c4n4ry" + HOST + b"Connection: close\r\n\r\n"
    )
    assert (status, json.loads(body)["error"]) == (500, "internal")


async def test_a_client_that_leaves_in_its_body_leaves_no_line(log: Log, gateway: Gateway) -> None:
    """Broken connections are everyday: a traceback each would hide the ones that matter."""
    head = HOST + b"Content-Length: 9\r\n\r\n1"
    for request in (b"POST /hooks/hooks?topic=orders" + head, b"GET /nothing" + head):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(request)
        await writer.drain()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 1)
        writer.transport.abort()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
    said = "".join(log.said())
    assert "Traceback" not in said and "failed" not in said


def test_the_two_limits_differ() -> None:
    """aiohttp's errors differ by the limit alone: with equal limits 414 and 431 could not be distinguished."""
    assert MAX_URL_BYTES != MAX_HEADER_BYTES
    assert set(responses.COMMON_HEADERS) == {"Server", "X-Content-Type-Options"}


async def test_errors_leave_no_garbage(gateway: Gateway) -> None:
    """Each would keep its request's bytes until the next garbage collection: hundreds of MB in a flood."""
    gc.collect()
    gc.disable()
    try:
        for request in (b"c4n4ry\r\n\r\n", b"GET /nothing" + HOST + b"\r\n", b"PUT /events" + HOST + b"\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(request)
            async with safety_net():
                await reader.readuntil(b"}\n")
            writer.transport.abort()
            await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
        # isinstance() would ask the abstract base class of aiohttp's responses about each object that there
        # is.
        kinds = {HttpProcessingError, web.HTTPException}
        errors = [each for each in gc.get_objects() if kinds & set(type(each).__mro__)]
        assert not [each for each in errors if each.__traceback__ is not None]
    finally:
        gc.enable()


async def test_nothing_is_read_behind_what_is_no_http(gateway: Gateway) -> None:
    """One answer to it, however much follows, in the same piece or later."""
    for pause in (0, 0.05):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /\0" + HOST + b"\r\n")
        await asyncio.sleep(pause)
        writer.write(b"POST /hooks/hooks?topic=orders" + HOST + b"Content-Length: 1\r\n\r\n1")
        async with safety_net():
            answer = await reader.read()
        assert answer.count(b"HTTP/1.1 ") == 1
        writer.close()
    assert await gateway.metric('events_received_total{source="hooks"}') == 0
