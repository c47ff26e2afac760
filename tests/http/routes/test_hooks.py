"""POST /hooks: accepted is kept, refused is counted, nothing is lost between."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from gateway.http import bodies
from gateway.http.bodies import BodyReader
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running

BEARER = {
    "sources": {
        "signed": {
            "type": "webhook",
            "verify": {"bearer": ["first-token", "second-token"]},
            "topic": "orders",
        }
    },
    "channels": {
        "orders": {"from": [{"source": "signed", "topic": "orders"}, {"source": "hooks", "topic": "orders"}]}
    },
}


async def post(gateway: Gateway, path: str, body: Any = b"1", **headers: str) -> tuple[int, Any]:
    async with gateway.session.post(gateway.url + path, data=body, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_post_is_an_event_with_the_id_of_the_answer(gateway: Gateway) -> None:
    """The sender can find its event again."""
    stream = await gateway.subscribe("/events/orders")
    status, answer = await post(gateway, "/hooks/hooks?topic=orders", b'[{"n":1},{"n":2}]')
    assert (status, answer["accepted"]) == (200, 2)
    assert [(await stream.next()).id for _ in range(2)] == answer["ids"]


async def test_an_idempotency_key_makes_a_retry_harmless(gateway: Gateway) -> None:
    """Same key, same ids, no second event; another key is another post."""
    stream = await gateway.subscribe("/events/orders")
    path, key = "/hooks/hooks?topic=orders", {"Idempotency-Key": "abc"}
    first = await post(gateway, path, b"[1,2]", **key)
    assert await post(gateway, path, b"[1,2]", **key) == first
    await post(gateway, path, b"3", **{"Idempotency-Key": "other"})
    assert [(await stream.next()).json["payload"] for _ in range(3)] == [1, 2, 3]


IMPOSSIBLE = [
    ("/hooks/hooks?topic=orders", b"", 400, "empty_body"),
    ("/hooks/hooks?topic=orders", b"[]", 400, "empty_body"),
    ("/hooks/hooks", b"1", 400, "no_topic"),
    ("/hooks/hooks?topic=" + "x" * 300, b"1", 400, "bad_topic"),
    ("/hooks/hooks?topic=orders&topic=other", b"1", 400, "bad_topic"),
    ("/hooks/hooks?topic=orders%FF", b"1", 400, "bad_topic"),
    ("/hooks/hooks?topic=%ED%A0%80", b"1", 400, "bad_topic"),
    ("/hooks/hooks?topic=nowhere", b"1", 404, "no_route"),
    ("/hooks/hooks?topic=orders", b"{broken", 422, "not_json"),
    ("/hooks/hooks?topic=orders", b"\xff\xfe", 422, "not_utf8"),
    ("/hooks/hooks?topic=orders", b'"' + b"x" * 300_000 + b'"', 413, "too_large"),
]


async def test_what_can_never_succeed_is_a_4xx_counted_by_reason(gateway: Gateway) -> None:
    """Guarantee 4: 4xx only for input that can never succeed, each with a stable code and a metric."""
    for path, body, status, code in IMPOSSIBLE:
        metric = f'events_rejected_total{{reason="{code}",source="hooks"}}'
        before = await gateway.metric(metric)
        got, answer = await post(gateway, path, body)
        assert (got, answer["error"]) == (status, code), (path, body[:80])
        assert await gateway.metric(metric) == before + 1, (path, body[:80])


async def test_a_batch_is_all_or_nothing(gateway: Gateway) -> None:
    """One bad record refuses the post and says which; nothing of it is delivered."""
    stream = await gateway.subscribe("/events/orders")
    body = b'{"n":1}\n{broken}\n{"n":3}'
    status, answer = await post(
        gateway, "/hooks/hooks?topic=orders", body, **{"Content-Type": "application/x-ndjson"}
    )
    assert status == 422
    assert answer["message"].startswith("record 1: ")
    await post(gateway, "/hooks/hooks?topic=orders", b'"after"')
    assert (await stream.next()).json["payload"] == "after"


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis"])
async def test_a_key_that_is_no_text_harms_nobody(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Bytes beyond ASCII in a header: 400 for that post, and the log goes on for all others."""
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/log.db"}.get(broker)
    url = url or request.getfixturevalue("redis").url
    async with gateway_running({"broker": {"url": url}}) as gateway:
        head = "POST /hooks/hooks?topic=orders HTTP/1.1\nHost: x\nContent-Length: 1\nIdempotency-Key: "
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head.replace("\n", "\r\n").encode() + b"\xff\r\n\r\n1")
        async with safety_net():
            assert b" 400 " in await reader.readuntil(b"\r\n")
        writer.close()
        await gateway.post("orders", "1")


async def test_an_unknown_source_is_a_404(gateway: Gateway) -> None:
    """Another method or source says so in JSON."""
    assert (await post(gateway, "/hooks/nope"))[1]["error"] == "unknown_source"
    async with gateway.session.get(f"{gateway.url}/hooks/hooks") as answer:
        assert answer.status == 405
    async with gateway.session.head(f"{gateway.url}/hooks/hooks") as answer:
        assert answer.status == 200


async def test_bearer_tokens() -> None:
    """Both tokens of a rotation are accepted; any other gets a 401 without details."""
    async with gateway_running(BEARER) as gateway:
        for given, status in (
            ("Bearer first-token", 200),
            ("bearer second-token", 200),
            ("Bearer third-token", 401),
            ("Bearer first-toke", 401),
            ("Bearer", 401),
            ("Basic first-token", 401),
            ("", 401),
        ):
            headers = {"Authorization": given} if given else {}
            got, answer = await post(gateway, "/hooks/signed", b"1", **headers)
            assert got == status, given
            assert "first-token" not in json.dumps(answer)


async def raw(gateway: Gateway, head: str, body: bytes = b"") -> bytes:
    """Send bytes as they are and return the answer's first line, and what else came at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head.replace("\n", "\r\n").encode() + body)
    try:
        async with safety_net():
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()


async def test_a_body_of_20_mb_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    """The length alone is enough for a 413: with Expect, and without."""
    head = "POST /hooks/hooks?topic=orders HTTP/1.1\nHost: x\nContent-Length: 20971520\n"
    assert b" 413 " in await raw(gateway, head + "Expect: 100-continue\n\n")
    assert b" 413 " in await raw(gateway, head + "\n")
    small = "POST /hooks/hooks?topic=orders HTTP/1.1\nHost: x\nContent-Length: 1\nExpect: 100-continue\n\n"
    assert (await raw(gateway, small)).startswith(b"HTTP/1.1 100 Continue")
    assert await gateway.metric('events_rejected_total{reason="too_large",source="hooks"}') == 2
    await gateway.post("orders", "1")


async def test_limits_hold_without_a_length_and_after_decompression() -> None:
    """Chunked bodies and gzip bombs end at the limit, not in memory."""
    async with gateway_running({"limits": {"webhook_body": "100KB"}}) as gateway:

        async def endless() -> Any:
            while True:
                yield b"x" * 10_000

        path = "/hooks/hooks?topic=orders"
        assert (await post(gateway, path, endless()))[0] == 413
        bomb = gzip.compress(b"0" * 20_000_000)
        assert len(bomb) < 100_000
        assert (await post(gateway, path, bomb, **{"Content-Encoding": "gzip"}))[0] == 413
        good = gzip.compress(b'"zipped"')
        assert (await post(gateway, path, good, **{"Content-Encoding": "gzip"}))[0] == 200
        for broken in (b"no gzip", good[:-4], good + b"more"):
            assert (await post(gateway, path, broken, **{"Content-Encoding": "gzip"}))[0] == 400
        assert (await post(gateway, path, b"1", **{"Content-Encoding": "br"}))[0] == 415


async def test_a_refused_bomb_is_never_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token a compressed body costs what any other body of its length costs."""
    bomb = gzip.compress(b"0" * 10_000_000)
    inflaters = 0
    decompressobj = zlib.decompressobj

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal inflaters
        inflaters += 1
        return decompressobj(*arguments, **more)

    monkeypatch.setattr(zlib, "decompressobj", counted)
    async with gateway_running(BEARER) as gateway:
        for path, status in (("/hooks/signed", 401), ("/hooks/nope", 404), ("/nowhere", 404)):
            got, _ = await post(gateway, path, bomb, **{"Content-Encoding": "gzip"})
            assert (got, inflaters) == (status, 0), path
        taken = await post(
            gateway, "/hooks/hooks?topic=orders", gzip.compress(b"1"), **{"Content-Encoding": "gzip"}
        )
        assert (taken[0], inflaters) == (200, 1), "or nothing was counted"


async def test_others_have_their_turns_while_a_bomb_is_inflated() -> None:
    """16 MiB out of 16 KiB took the loop for 50 ms: all streams stood still for as long."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    size = 100 * bodies.DECOMPRESS_STEP_BYTES
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    content.feed_data(gzip.compress(b"0" * size))
    content.feed_eof()
    request: Any = SimpleNamespace(headers={"Content-Encoding": "gzip"}, content=content)
    task = asyncio.create_task(others())
    got = sum([len(part) async for part in BodyReader(size, 10)._decompressed_parts(request)])
    task.cancel()
    assert got == size and turns > 90


@pytest.mark.idle_clock
async def test_slow_requests_have_deadlines() -> None:
    """A body that stops, headers that never end, a silent connection: each is over after timeouts.request."""
    async with gateway_running({"timeouts": {"request": "300ms"}}) as gateway:
        head = "POST /hooks/hooks?topic=orders HTTP/1.1\nHost: x\nContent-Length: 10\n\n"
        assert b" 408 " in await raw(gateway, head, b"12345")
        assert await gateway.metric('events_rejected_total{reason="request_timeout",source="hooks"}') == 1
        for beginning in (b"", b"GET /events/orders HTTP/1.1\r\nHost:"):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(beginning)
            async with safety_net():
                assert await reader.read() == b""
            writer.close()
        stream = await gateway.subscribe("/events/orders")
        await asyncio.sleep(0.6)
        await gateway.post("orders", "1")
        assert (await stream.next()).json["payload"] == 1, "a stream is not a slow request"


async def test_a_disconnect_in_mid_body_loses_nothing_else(gateway: Gateway) -> None:
    """A sender that dies in its post leaves no half event and no stuck handler."""
    stream = await gateway.subscribe("/events/orders")
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"POST /hooks/hooks?topic=orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n[1,2")
        await asyncio.sleep(0)
        writer.transport.abort()
    await gateway.post("orders", '"whole"')
    assert (await stream.next()).json["payload"] == "whole"
    server = gateway.daemon.public_listener._runner.server
    await eventually(lambda: len(server.connections) <= 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "query",
    ["topic=%00", "topic=a%0d%0ab", "topic=" + "%F0%9F%92%A9" * 40],
)
async def test_strange_topics_are_a_404(gateway: Gateway, query: str) -> None:
    """Whatever the topic is, it is no route, in JSON."""
    answer = await raw(gateway, f"POST /hooks/hooks?{query} HTTP/1.1\nHost: x\nContent-Length: 1\n\n", b"1")
    assert b" 404 " in answer


async def test_an_empty_idempotency_key_is_none(gateway: Gateway) -> None:
    """Two different posts with an empty header are two events."""
    path, empty = "/hooks/hooks?topic=orders", {"Idempotency-Key": ""}
    first = await post(gateway, path, b"1", **empty)
    assert await post(gateway, path, b"2", **empty) != first


async def test_too_many_records_are_refused_before_they_are_built(gateway: Gateway) -> None:
    """A small body can hold millions of records."""
    for body, kind in ((b"[" + b"1," * 500_000 + b"1]", ""), (b"1\n" * 500_000, "application/x-ndjson")):
        headers = {"Content-Type": kind} if kind else {}
        assert (await post(gateway, "/hooks/hooks?topic=orders", body, **headers))[0] == 413


async def test_malformed_http_fills_no_log(gateway: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    """Scanners send garbage; it is answered, and not a traceback with its headers each."""
    for _ in range(20):
        answer = await raw(
            gateway, "GET /events/orders HTTP/1.1\nHost: x\nAuthorization: Bearer canary\nX Y: z\n\n"
        )
        assert b" 400 " in answer
    assert "canary" not in "".join(capfd.readouterr())


async def test_refusals_are_one_line_a_minute_for_each_reason(capfd: pytest.CaptureFixture[str]) -> None:
    """A sender that fails all night must not fill the disk, and the log line says what is wrong."""
    async with gateway_running({"logging": {"level": "warning", "format": "json"}}) as gateway:
        for _ in range(30):
            await post(gateway, "/hooks/hooks?topic=orders", b"{broken")
            await post(gateway, "/hooks/hooks?topic=nowhere", b"1")
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if "rejected" in line]
    assert len(lines) == 2
    assert any("not JSON" in line for line in lines)
    assert any("nowhere" in line for line in lines)
