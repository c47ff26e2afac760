"""Connections that end: a proxy that keeps a pool of them must be told, or it sends the next request into the void."""

import asyncio
from typing import Any

import pytest

from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, gateway_running

HOST = " HTTP/1.1\r\nHost: gateway\r\n"
PROXY = "X-Forwarded-For: 203.0.113.9\r\n"
NEXT = f"GET /client.js{HOST}\r\n".encode()
ANSWERED = b"Content-Type: text/javascript"

REQUESTS = {
    "a stream": f"GET /events/orders{HOST}{PROXY}",
    "a stream by way of aiohttp": f"GET /events/orders{HOST}{PROXY}Content-Length: 0\r\n",
    "a stream of HTTP/1.0": f"GET /events/orders HTTP/1.0\r\nHost: gateway\r\n{PROXY}",
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
    "no HTTP": "nonsense\r\n",
    "a head that is too long": f"GET /events/orders{HOST}X: {'x' * 9000}\r\n",
    "no host": "GET /events/orders HTTP/1.1\r\n",
}
"""Up to the empty line, or with it and a body."""

CONFIG: dict[str, Any] = {
    "cors": {"origins": ["https://a.example"]},
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}, "tickets": {}},
    "sources": {"signed": {"type": "webhook", "verify": {"github": ["s3cret-s3cret-s3cret"]}}},
    "channels": {
        "orders": {"ack": {}},
        "private": {"from": [{"source": "hooks", "topic": "private"}], "access": "token"},
    },
}


async def asked(gateway: Gateway, request: str) -> tuple[bytes, bytes]:
    """Send a request and one more behind it; return the first answer's head, and all that follows it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(request.encode() + (b"" if "\r\n\r\n" in request else b"\r\n"))
        async with safety_net():
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100"):
                head = await reader.readuntil(b"\r\n\r\n")
            if b"text/event-stream" in head and request.startswith("GET"):
                await reader.readuntil(b"\n\n")
                await gateway.daemon.streams.abort(
                    "test"
                )  # the stream's end, which a proxy sees as the answer's
            writer.write(NEXT)
            rest = await reader.read(1 << 20)
            while ANSWERED not in rest and (part := await reader.read(1 << 20)):
                rest += part
    except ConnectionError:
        rest = b""  # reset: what was sent behind the answer was not read
    finally:
        writer.transport.abort()
    return head, rest


@pytest.mark.idle_clock
async def test_every_answer_before_an_end_says_so() -> None:
    """Behind nginx with a pool, 150 of 1,692 posts were answered 502 while streams ended (RFC 9112 §9.6)."""
    async with gateway_running(CONFIG) as gateway:
        wrong = []
        for name, request in REQUESTS.items():
            head, rest = await asked(gateway, request)
            says_so = b"\r\nconnection: close\r\n" in head.lower()
            goes_on = ANSWERED in rest
            if " HTTP/1.0" in request:
                goes_on = goes_on or b"keep-alive" in head.lower()
                says_so = says_so or b"keep-alive" not in head.lower()
            if says_so == goes_on:
                wrong.append((name, says_so, goes_on, head[:200], rest[-200:]))
        assert not wrong


async def test_a_client_itself_is_not_told(gateway: Gateway) -> None:
    """Node's fetch would take a broken connection for the end of the stream, and some clients stay away then."""
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
