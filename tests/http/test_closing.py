"""Responses before a close say `Connection: close`, or a proxy's pool sends its next request into the void."""

import ast
import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.http.listener import Listener
from gateway.http.routes import client
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, gateway_running

ROOT = Path(__file__).parents[2]

HOST = " HTTP/1.1\r\nHost: gateway\r\n"
PROXY = "X-Forwarded-For: 203.0.113.9\r\n"
NEXT = f"GET /client.js{HOST}\r\n".encode()
ANSWERED = b"\r\nContent-Type: text/javascript"
NEXT_TO_ADMIN = f"GET /metrics{HOST}\r\n".encode()
ANSWERED_BY_ADMIN = b"\r\nContent-Type: text/plain"
RECORDS = "/hooks/hooks/v3/clusters/c/topics/orders/records"
RECORD = '{"value": {"type": "JSON", "data": 1}}'


def _slashed(request: str) -> str:
    path = request.split(" ")[1]
    return request.replace(path, f"{path.partition('?')[0]}/{''.join(path.partition('?')[1:])}", 1)


REQUESTS = {
    "a stream": f"GET /events/orders{HOST}{PROXY}",
    "a stream by way of aiohttp": f"GET /events/orders{HOST}{PROXY}Content-Length: 0\r\n",
    "a stream of HTTP/1.0": f"GET /events/orders HTTP/1.0\r\nHost: gateway\r\n{PROXY}",
    **{
        f"a stream by way of a proxy that writes {name}": f"GET /events/orders{HOST}{name}: 203.0.113.9\r\n"
        for name in ("Forwarded", "Via", "X-Real-IP")
    },
    "a stream that is refused": f"GET /events/nothing{HOST}",
    "the same by way of aiohttp": f"GET /events/nothing{HOST}Content-Length: 0\r\n",
    "a stream without a channel": f"GET /events{HOST}",
    "a stream without a token": f"GET /events/private{HOST}",
    "a stream for a page of another origin": f"GET /events/orders{HOST}Origin: https://evil.example\r\n",
    "HEAD of a stream": f"HEAD /events/orders{HOST}",
    "HEAD of nothing": f"HEAD /events/nothing{HOST}",
    "a preflight": f"OPTIONS /events/orders{HOST}Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n",
    "a refused preflight": f"OPTIONS /events/orders{HOST}Origin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n",
    "no route": f"GET /nothing{HOST}",
    "another method": f"PUT /events/orders{HOST}Content-Length: 0\r\n",
    "a post": f"POST /hooks/hooks?topic=orders{HOST}Content-Length: 1\r\n\r\n1",
    "a post of HTTP/1.0": "POST /hooks/hooks?topic=orders HTTP/1.0\r\nHost: gateway\r\nContent-Length: 1\r\n\r\n1",
    "a post that asks for the end": f"POST /hooks/hooks?topic=orders{HOST}Connection: close\r\nContent-Length: 1\r\n\r\n1",
    "a post without a topic": f"POST /hooks/hooks{HOST}Content-Length: 1\r\n\r\n1",
    "a post to nobody": f"POST /hooks/nobody?topic=orders{HOST}Content-Length: 1\r\n\r\n1",
    "a post that is no JSON": f"POST /hooks/hooks?topic=orders{HOST}Content-Length: 2\r\n\r\n{{x",
    "a post without a signature": f"POST /hooks/signed?topic=orders{HOST}Content-Length: 1\r\n\r\n1",
    "a post whose body is not read": f"POST /hooks/signed?topic=orders{HOST}Content-Length: 900000\r\n\r\n1",
    "a post that is too large": f"POST /hooks/hooks?topic=orders{HOST}Content-Length: 99999999\r\n\r\n1",
    "an answer to a heartbeat": f"POST /streams/{'0' * 24}/ack{HOST}Content-Length: 1\r\n\r\nx",
    "a ticket": f"POST /tickets?channel=private{HOST}Content-Length: 0\r\n",
    "the client": f"GET /client.js{HOST}",
    "the client by its version": f"GET /client.{client.SCRIPT_VERSION}.js{HOST}",
    "HEAD of the client": f"HEAD /client.js{HOST}",
    "HEAD of the client by its version": f"HEAD /client.{client.SCRIPT_VERSION}.js{HOST}",
    "HEAD without a channel": f"HEAD /events{HOST}",
    "a preflight without a channel": f"OPTIONS /events{HOST}Origin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n",
    "a preflight for a ticket": f"OPTIONS /tickets{HOST}Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n",
    "a preflight for an answer": f"OPTIONS /streams/{'0' * 24}/ack{HOST}Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n",
    "a request with a body that never comes": f"GET /client.js{HOST}Content-Length: 900000\r\n\r\n1",
    "an unknown path with a body that never comes": f"POST /nothing{HOST}Content-Length: 900000\r\n\r\n1",
    "another method with a body that never comes": f"PUT /events/orders{HOST}Content-Length: 900000\r\n\r\n1",
    "a post without a token whose body never comes": f"POST /hooks/guarded?topic=orders{HOST}Content-Length: 900000\r\n\r\n1",
    "a post to nobody whose body never comes": f"POST /hooks/nobody?topic=orders{HOST}Content-Length: 900000\r\n\r\n1",
    "a post that is too fast": f"POST /hooks/slow?topic=orders{HOST}Content-Length: 900000\r\n\r\n1",
    "a post in broken chunks": f"POST /hooks/hooks?topic=orders{HOST}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "chunks of HTTP/1.0": "POST /hooks/hooks?topic=orders HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\n\r\n",
    "an expectation": f"POST /hooks/hooks?topic=orders{HOST}Expect: 100-continue\r\nContent-Length: 1\r\n\r\n1",
    "an expectation without a token": f"POST /hooks/guarded?topic=orders{HOST}Expect: 100-continue\r\nContent-Length: 9\r\n",
    "an expectation of nobody": f"POST /hooks/nobody?topic=orders{HOST}Expect: 100-continue\r\nContent-Length: 9\r\n",
    "an expectation that is unknown": f"POST /hooks/hooks?topic=orders{HOST}Expect: tea\r\nContent-Length: 9\r\n",
    "an expectation elsewhere": f"POST /nothing{HOST}Expect: tea\r\nContent-Length: 9\r\n",
    "an upgrade": f"GET /client.js{HOST}Upgrade: websocket\r\nConnection: Upgrade\r\n",
    "an upgrade of a stream": f"GET /events/orders{HOST}{PROXY}Upgrade: h2c\r\nConnection: Upgrade\r\n",
    "a tunnel": "CONNECT gateway:443 HTTP/1.1\r\nHost: gateway\r\n",
    "HEAD of a source": f"HEAD /hooks/hooks{HOST}",
    "OPTIONS of a source": f"OPTIONS /hooks/hooks{HOST}WebHook-Request-Origin: a.example\r\n",
    **{
        f"{method} of {kind}": f"{method} {path}{HOST}Content-Length: 0\r\n"
        for method in ("POST", "HEAD", "OPTIONS")
        for kind, path in {
            "topics": "/hooks/hooks/topics/orders",
            "a partition": "/hooks/hooks/topics/orders/partitions/0",
            "records": "/hooks/hooks/v3/clusters/c/topics/orders/records",
            "a batch of records": "/hooks/hooks/v3/clusters/c/topics/orders/records:batch",
            "messages": "/hooks/hooks/orders/messages",
        }.items()
    },
    "receipts": f"POST {RECORDS}{HOST}Content-Type: application/json\r\nContent-Length: {len(RECORD)}\r\n\r\n{RECORD}",
    "receipts for a proxy": f"POST {RECORDS}{HOST}{PROXY}Content-Type: application/json\r\nContent-Length: 900000\r\n\r\n{RECORD}",
    "no HTTP": "nonsense\r\n",
    "a head that is too long": f"GET /events/orders{HOST}X: {'x' * 9000}\r\n",
    "a token that is too long": f"GET /events/orders{HOST}Authorization: Bearer {'x' * 20000}\r\n",
    "a URL that is too long": f"GET /events/{'x' * 9000}{HOST}",
    "a length that is none": f"POST /hooks/hooks{HOST}Content-Length: x\r\n",
    "no host": "GET /events/orders HTTP/1.1\r\n",
}
REQUESTS |= {
    f"{name}, with a slash too many": _slashed(REQUESTS[name])
    for name in (
        *("a stream", "HEAD of a stream", "a preflight"),
        *("a stream without a channel", "HEAD without a channel", "a preflight without a channel"),
        *("a ticket", "a preflight for a ticket", "an answer to a heartbeat", "a preflight for an answer"),
        *(
            "the client",
            "HEAD of the client",
            "the client by its version",
            "HEAD of the client by its version",
        ),
    )
}
"""Up to the empty line, or with it and a body."""

ADMIN_REQUESTS = {
    **{
        f"{method} {path}": f"{method} {path}{HOST}Content-Length: 0\r\n"
        for method, path in (
            *(("GET", path) for path in ("/", "/metrics", "/healthz", "/readyz", "/status")),
            *(("HEAD", path) for path in ("/", "/metrics", "/healthz", "/readyz", "/status")),
            ("POST", "/reload"),
            ("DELETE", "/streams"),
            ("DELETE", "/streams?subject=a"),
            ("POST", "/try/events"),
            ("GET", "/try/events?channel=nothing"),
            ("GET", "/nothing"),
            ("PUT", "/status"),
        )
    },
    "figures by way of a proxy": f"GET /status/stream{HOST}{PROXY}",
    "a channel by way of a proxy": f"GET /try/events?channel=orders{HOST}{PROXY}",
    "a page of somebody else": f"GET /status{HOST}Origin: https://evil.example\r\n",
    "a name of somebody else": "GET /status HTTP/1.1\r\nHost: evil.example\r\n",
    "a post whose body never comes": f"POST /try/events{HOST}Content-Length: 900000\r\n\r\n1",
    "no HTTP": "nonsense\r\n",
}
"""The same of the admin port."""

ENDS = {
    "admin/status_stream.py _get: request.transport.abort": "the viewer does not read: its answer is cut",
    "admin/status_stream.py _get: response.force_close": "figures by way of a proxy",
    "http/routes/acks.py post: response.force_close": "an answer to a heartbeat",
    "http/cors.py options: response.force_close": "beyond a rate: `test_a_flood_of_preflights_is_limited`",
    "http/fast_path.py _open_stream: self.transport.abort": "a fault: no answer at all",
    "http/fast_path.py _open_stream: self.transport.close": "a stream that is refused",
    "http/fast_path.py _open_stream: self.transport.write": "a stream that is refused",
    "http/fast_path.py _refuse_long_token: self.transport.close": "a token that is too long",
    "http/fast_path.py _refuse_long_token: self.transport.write": "a token that is too long",
    "http/fast_path.py force_close: self.transport.abort": "no request came: no answer",
    "http/routes/hooks.py expect_handler: request.transport.write": "100 Continue is no answer yet",
    "http/aiohttp_protocol.py finish_response: resp.force_close": "chunks of HTTP/1.0",
    "http/aiohttp_protocol.py handle_error: response.force_close": "no HTTP",
    "http/routes/records.py write: self._request.transport.abort": "the sender does not read: its answer is cut",
    "http/responses.py close_connection_after: response.force_close": "an unknown path with a body that never comes",
    "http/listener.py _announce_close: close_connection_after": "an unknown path with a body that never comes",
    "http/listener.py _force_close: protocol.force_close": "no request came: no answer",
    "http/listener.py _on_aiohttp_request: request.protocol.force_close": "another version, where aiohttp changed: no answer",
    "http/listener.py connection_made: transport.abort": "no room: no answer",
    "http/listener.py on_connect: protocol.force_close": "too many of one address: no answer",
    "http/listener.py stop: protocol.force_close": "no request came: no answer",
    "http/routes/subscribe.py get: response.force_close": "the same by way of aiohttp",
    "http/routes/subscribe.py open_on_transport: transport.write": "a stream",
    "hub/audience.py _write_direct: frame.recipients[position].transport.write": "within a stream",
    "hub/audience.py _write_checked: member.transport.write": "within a stream",
    "streams/connection.py _write: self.transport.write": "within a stream",
    "streams/connection.py abort: self.transport.abort": "a stream, which is cut",
    "streams/connection.py close: self.transport.close": "a stream",
    "streams/upgrade.py take_over: response.force_close": "as in `STREAM_HEADERS_FOR_PROXIES`, where aiohttp changed",
    "server/workers/relay.py _forward_stream: response.force_close": "as in `TryPanel`, by way of a parent",
}
"""Each place that ends a connection, or writes to one past aiohttp; and the request above that comes there, or why none."""

CONFIG: dict[str, Any] = {
    "server": {"development": True},
    "limits": {"connect_rate_per_address": "100000/s"},
    "cors": {"origins": ["https://a.example"]},
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}, "tickets": {}},
    "sources": {
        "signed": {"type": "webhook", "verify": {"github": ["s3cret-s3cret-s3cret"]}},
        "guarded": {"type": "webhook", "verify": {"bearer": ["s3cret-s3cret-s3cret"]}},
        "slow": {"type": "webhook", "verify": {"none": True}, "rate": "1/h"},
    },
    "channels": {
        "orders": {"ack": {}},
        "private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"},
    },
}


async def asked(listener: Listener, request: str, *, is_admin: bool = False) -> tuple[bytes, bytes]:
    """Send a request and one more behind it; return the first answer's head, and all that follows it."""
    following, answered = (NEXT_TO_ADMIN, ANSWERED_BY_ADMIN) if is_admin else (NEXT, ANSWERED)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    try:
        writer.write(request.encode() + (b"" if "\r\n\r\n" in request else b"\r\n"))
        async with safety_net():
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            if b"text/event-stream" in head and request.startswith("GET"):
                return head, b""  # a stream's end is its connection's
            writer.write(following)
            rest = await reader.read(1 << 20)
            while answered not in rest and (part := await reader.read(1 << 20)):
                rest += part
    except ConnectionError:
        rest = b""  # reset: what was sent behind the answer was not read
    finally:
        writer.transport.abort()
    return head, rest[rest.find(answered) :] if answered in rest else b""


def judged(name: str, request: str, head: bytes, rest: bytes) -> Iterator[str]:
    """Yield how a response misleads: its connection goes on after `close`, or ends without it."""
    says_so = b"\r\nconnection: close\r\n" in head.lower()
    goes_on = bool(rest)
    if " HTTP/1.0" in request:
        says_so = says_so or b"keep-alive" not in head.lower()
    if says_so == goes_on:
        yield f"{name}: says that it ends: {says_so}, goes on: {goes_on}: {head[:200]!r} {rest[-200:]!r}"


@pytest.mark.idle_clock
async def test_every_answer_before_an_end_says_so() -> None:
    """Behind nginx with a pool, 150 of 1,692 posts were answered 502 while streams ended (RFC 9112 §9.6)."""
    async with gateway_running(CONFIG) as gateway:
        wrong: list[str] = []
        for name, request in REQUESTS.items():
            wrong += judged(name, request, *await asked(gateway.daemon.public_listener, request))
        for name, request in ADMIN_REQUESTS.items():
            wrong += judged(
                name, request, *await asked(gateway.daemon.admin_listener, request, is_admin=True)
            )
        assert not wrong, "\n".join(wrong)


@pytest.mark.idle_clock
async def test_once_it_ends_every_answer_says_so() -> None:
    """A pool that keeps a connection to a node that shuts down sends a post into its end."""
    async with gateway_running(CONFIG) as gateway:
        gateway.daemon.drain()
        for listener, requests in (
            (gateway.daemon.public_listener, REQUESTS),
            (gateway.daemon.admin_listener, ADMIN_REQUESTS),
        ):
            for name, request in requests.items():
                head, rest = await asked(
                    listener, request, is_admin=listener is gateway.daemon.admin_listener
                )
                assert not rest, name
                assert list(judged(name, request, head, rest)) == []


async def routes(app: web.Application, requests: Mapping[str, str]) -> set[tuple[str, str]]:
    """Return the method and path of each route that requests lead to."""
    found = set()
    for request in requests.values():
        words = request.split(" ")
        if words[0] in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") and len(words[1]) < 8000:
            match = await app.router.resolve(make_mocked_request(words[0], words[1]))
            if match.http_exception is None and match.route.resource is not None:
                found.add((words[0], match.route.resource.canonical))
    return found


async def test_no_route_is_forgotten() -> None:
    """A route that is added must have a request above, or its answers may end connections in silence."""
    async with gateway_running(CONFIG) as gateway:
        for listener, requests in (
            (gateway.daemon.public_listener, REQUESTS),
            (gateway.daemon.admin_listener, ADMIN_REQUESTS),
        ):
            app = listener._runner.app
            declared = {
                (route.method, route.resource.canonical)
                for route in app.router.routes()
                if route.resource is not None
            }
            assert declared - await routes(app, requests) == set()


def test_no_end_is_forgotten() -> None:
    """Code that ends a connection, or answers on one by itself, must have a request above."""
    found = set()
    for folder in ("admin", "http", "hub", "server", "streams"):
        for file in sorted((ROOT / "gateway" / folder).rglob("*.py")):
            module = file.relative_to(ROOT / "gateway")
            for function in ast.parse(file.read_text()).body:
                found |= {f"{module} {end}" for end in _ends(function)}
    assert found == set(ENDS)
    requests = REQUESTS.keys() | ADMIN_REQUESTS.keys()
    assert {
        why
        for why in ENDS.values()
        if ":" not in why and not why.startswith(("within ", "as in ", "100 ", "a stream, "))
    } <= requests


def _ends(tree: ast.AST, function: str = "") -> Iterator[str]:
    """Yield the calls below a node that end a connection or write to a transport, with their function."""
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        function = function if function and tree.name == "handle" else tree.name
    if isinstance(tree, ast.Attribute | ast.Name):
        text = ast.unparse(tree)
        name = text.rpartition(".")[2]
        if name in ("force_close", "close_connection_after") or (
            "transport" in text and name in ("abort", "close", "write", "writelines", "write_eof")
        ):
            yield f"{function}: {text}"
    for child in ast.iter_child_nodes(tree):
        yield from _ends(child, function)


async def test_a_client_itself_is_not_told(gateway: Gateway) -> None:
    """With `close`, Node's fetch takes a broken connection for the end, and some clients stay away."""
    for more in ("", "Content-Length: 0\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(f"GET /events/orders{HOST}{more}\r\n".encode())
        async with safety_net():
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert b"text/event-stream" in head and b"\r\nconnection:" not in head.lower()


async def test_streams_that_are_not_let_in_say_so_too() -> None:
    """Refusals that a stream carries (a node that is full, a rate) end the connection like a stream."""
    async with gateway_running({**CONFIG, "limits": {"connections": 1}}) as gateway:
        await gateway.subscribe("/events/orders")
        for more in ("", "Content-Length: 0\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(f"GET /events/orders{HOST}{more}\r\n".encode())
            async with safety_net():
                answer = await reader.read()
            writer.close()
            assert b"overloaded" in answer
            assert b"\r\nconnection: close\r\n" in answer.lower()
