"""Requests hidden in others: whatever a proxy in front may have taken them for, they are not executed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.abuses import HOST, INNER, Attacker, smuggled
from tests.support.answers import answers
from tests.support.gateway import Gateway, gateway_running

pytestmark = pytest.mark.idle_clock

CONFIG = {
    "timeouts": {"request": "500ms"},
    "channels": {
        name: {"from": [{"source": "hooks", "topic": name}], "access": "public", "payload": "text"}
        for name in ("outer", "inner")
    },
}

OUTER = b"POST /hooks/hooks?topic=outer" + HOST
REQUESTS = smuggled(OUTER)

UNDERSTOOD = {"as a body", "as a chunk"}
"""Posts that are right as they are: all of the rest is their body."""

EITHER = {"chunks of HTTP/1.0", "chunks of HTTP/1.0, kept"}
"""May be executed where their connection ends with them (RFC 9112 §6.1)."""

STREAM = b"GET /events/outer" + HOST
BEHIND = {
    "a stream": STREAM + b"\r\n",
    "a stream that aiohttp opens": b"GET /events/%6futer" + HOST + b"\r\n",
    "a stream with a body": STREAM + b"Content-Length: 5\r\n\r\nabcde",
    "a stream with chunks": STREAM + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "a stream of HTTP/1.0": STREAM.replace(b"1.1", b"1.0") + b"\r\n",
    "a refused stream": b"GET /events/nothing" + HOST + b"\r\n",
    "a refused stream of aiohttp's": b"GET /events/%6eothing" + HOST + b"\r\n",
    "a token that is too long": b"GET /events/outer" + HOST + b"Authorization: Bearer " + b"a" * 10_000 + b"\r\n\r\n",
    "a header that is too long": b"GET /nothing" + HOST + b"X: " + b"a" * 10_000 + b"\r\n\r\n",
    "a post that is too large": OUTER + b"Content-Length: 100000000\r\n\r\n",
    "a post that is expected too large": OUTER + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n",
}  # fmt: skip
"""After these nothing more is read on a connection."""


@pytest.fixture(scope="function")
async def target() -> AsyncIterator[Gateway]:
    """A gateway that accepts any webhook, and treats loopback like any client."""
    async with gateway_running(CONFIG) as running:
        yield running


async def said(gateway: Gateway, request: bytes, step: int) -> tuple[bytes, Attacker]:
    """Send a request, whole or in pieces, and return the response."""
    attacker = Attacker(gateway.port, address="127.0.0.1", patience=5)
    pieces = [request[at : at + step] for at in range(0, len(request), step)]
    return await attacker.send(*pieces, pause=0 if len(pieces) == 1 else 0.0001), attacker


async def posted(gateway: Gateway, topic: str) -> int:
    """Return how many events a topic's channel has."""
    stream = await gateway.subscribe(f"/events/{topic}?last=1000")
    await gateway.post(topic, "last")
    count = 0
    while (await stream.until("message")).json["payload"] != "last":
        count += 1
    stream.close()
    return count


@pytest.mark.parametrize("step", [1_000_000, 11])
async def test_a_hidden_request_is_not_executed(target: Gateway, step: int) -> None:
    """One answer, well formed, and then nothing: what follows may be what a proxy took for another's body."""
    for name, request in REQUESTS.items():
        raw, attacker = await said(target, request, step)
        assert len(answers(raw)) == 1, (name, raw)
        (answer,) = answers(raw)
        if name not in EITHER:
            assert (answer.status == 200) == (name in UNDERSTOOD), (name, answer)
        assert not attacker.answers["none"], name
    assert await posted(target, "inner") == 0
    assert await posted(target, "outer") in range(len(UNDERSTOOD), len(UNDERSTOOD | EITHER) + 1)


@pytest.mark.parametrize("name", BEHIND)
async def test_nothing_is_executed_behind_what_ends_a_connection(target: Gateway, name: str) -> None:
    """No response can follow a stream, nor a refusal of a request whose end is unknown."""
    for later in (0, 0.02):
        attacker = Attacker(target.port, address="127.0.0.1", patience=0.7)
        raw = await attacker.send(BEHIND[name], INNER, pause=later)
        assert len(answers(raw)) <= 1, raw
    await asyncio.sleep(0.05)
    assert await posted(target, "inner") == 0


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0"])
async def test_no_other_protocol_is_spoken(target: Gateway, protocol: bytes) -> None:
    """A proxy that saw a 101 would pass on all that follows unread."""
    head = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\nHTTP2-Settings: AAMAAABk\r\n" % protocol
    for request in (STREAM + head + b"\r\n", OUTER + head + b"Content-Length: 1\r\n\r\n1"):
        raw, _ = await said(target, request, 1_000_000)
        assert [answer.status for answer in answers(raw)] == [200]


async def test_a_request_behind_a_whole_one_is_executed(target: Gateway) -> None:
    """Else the tests above would prove nothing."""
    raw, _ = await said(target, OUTER + b"Content-Length: 1\r\n\r\n1" + INNER, 1_000_000)
    assert [answer.status for answer in answers(raw)] == [200, 200]
    assert await posted(target, "inner") == 1
