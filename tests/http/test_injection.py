"""CR, LF, NUL and forged ids in every field that reaches a stream or an answer: none begins a line of its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from bench.abuses import FORGED_IDS, HOST, Attacker
from gateway.core.event import EventId
from tests.support.answers import Answer, answers
from tests.support.eventsource import Message, Parser
from tests.support.gateway import Gateway, gateway_running

pytestmark = pytest.mark.idle_clock

NASTY = (
    "a\r\nevent: evil\r\ndata: evil\r\n\r\n",
    "a\n\nevent: evil\ndata: evil\n\n",
    "a\r\rdata: evil\r\r",
    "a\nid: 999999999999999-0",
    "a\rretry: 1",
    "a\n: comment\n",
    "a\r\nSet-Cookie: evil=1",
    "a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a\0b",
    "\r",
    "\n",
    "\0",
    "a\u2028data: evil\u2029",
    "a\x85data: evil\x0b\x0c\x1c",
    "\ufeffdata: evil",
)


def route(topic: str, **more: Any) -> dict[str, Any]:
    return {
        "from": [{"source": name, "topic": topic} for name in ("hooks", "typed")],
        "access": "public",
        **more,
    }


CONFIG: dict[str, Any] = {
    "cors": {"origins": ["https://*.example.com"], "credentials": True},
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}, "tickets": {}},
    "sources": {
        "typed": {
            "type": "webhook",
            "verify": {"none": True},
            "topic": "user.{/id}",
            "event": {"type": "{/type}", "deduplicate": "{/key}"},
        }
    },
    "channels": {
        "text": route("text", payload="text"),
        "bare": route("bare", payload="text", format="data"),
        "envelope": route("envelope", payload="envelope"),
        "user.{id}": route("user.{id}"),
        "keys.{id}": {"from": [{"source": "hooks", "topic": "keys", "fields": {"id": "{key}"}}], "access": "public"},
    },
}  # fmt: skip
CHANNELS = "orders,text,bare,envelope,user.a,keys.a"


@pytest.fixture
async def target() -> AsyncIterator[Gateway]:
    """A gateway with a channel for each kind of source."""
    async with gateway_running(CONFIG) as running:
        yield running


def posts(nasty: str) -> list[tuple[str, str, Any]]:
    """Return path, content type and body of posts that carry a text in each field that they have."""
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": nasty}
    attributes = ("id", "source", "type", "subject", "time", "dataschema", "partitionkey")
    plain, cloud = "application/json", "application/cloudevents+json"
    rest = "application/vnd.kafka.json.v2+json"
    record = {"key": nasty, "value": 1}
    return [
        ("/hooks/hooks?topic=text", "text/plain", nasty),
        ("/hooks/hooks?topic=bare", "text/plain", nasty),
        ("/hooks/hooks?topic=orders", plain, json.dumps(nasty)),
        ("/hooks/hooks?topic=orders", plain, f"[1,\r\n2,\r\n{json.dumps(nasty)}]\r\n"),
        ("/hooks/hooks?topic=orders", "application/x-ndjson", f"1\r\n{json.dumps(nasty)}\n\r\n"),
        *(("/hooks/hooks?topic=envelope", plain, json.dumps({"type": kind, "payload": nasty})) for kind in (nasty, "t")),
        ("/hooks/hooks?topic=envelope", plain, json.dumps({"type": "t", "payload": 1, "timestamp": nasty})),
        *(("/hooks/typed", plain, json.dumps({"type": "t", "id": "a", "key": "k"} | {name: nasty})) for name in ("type", "id", "key")),
        *(("/hooks/hooks?topic=orders", cloud, json.dumps(event | {name: nasty})) for name in attributes),
        ("/hooks/hooks", cloud, json.dumps(event | {"type": nasty})),
        ("/hooks/hooks/topics/keys", rest, json.dumps({"records": [record, {"key": "a", "value": nasty}]})),
        ("/hooks/hooks/v3/clusters/c/topics/keys/records", plain, json.dumps({"key": {"type": "JSON", "data": nasty}, "value": {"type": "JSON", "data": nasty}})),
        (f"/hooks/hooks?topic={quote(nasty)}", plain, "1"),
        (f"/hooks/hooks/topics/{quote(nasty, safe='')}", rest, json.dumps({"records": [record]})),
        (f"/hooks/hooks/{quote(nasty, safe='')}/messages", plain, "1"),
        (f"/hooks/{quote(nasty, safe='')}", plain, "1"),
        ("/hooks/hooks?topic=orders", f"{plain}; x={quote(nasty)}", "1"),
    ]  # fmt: skip


async def last_answer(gateway: Gateway, request: bytes) -> Answer:
    """Send a request and return the one answer to it."""
    raw = await Attacker(gateway.port, address="127.0.0.1").send(request)
    (answer,) = answers(raw, heads=request.startswith(b"HEAD"))
    assert answer.status < 500, raw
    return answer


def messages(stream: bytes) -> list[Message]:
    parser = Parser()
    parser.feed(stream)
    assert not parser.torn and parser.retry in (None, 3000)
    return parser.messages


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
async def test_no_field_of_a_post_breaks_out_of_its_line(target: Gateway, nasty: str) -> None:
    """One event for each record that was taken, with ids of ours, and texts as they were sent."""
    stream = await target.subscribe(f"/events?channel={CHANNELS}")
    heads = [
        f"POST {path}{HOST.decode()}Content-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}"
        for path, kind, body in posts(nasty)
    ]
    await asyncio.gather(*(last_answer(target, each.encode()) for each in heads))
    (last,) = await target.post("orders", '"the last one"')
    while not stream.messages or stream.messages[-1].id != last:
        await stream.next()
    taken = await target.metric('events_received_total{source="hooks"}')
    assert len(stream.messages) <= 1 + taken + await target.metric('events_received_total{source="typed"}')
    ids = [EventId.parse(message.id) for message in stream.messages]
    assert ids == sorted(set(ids), key=ids.index) == sorted(each for each in ids if each)
    assert {message.type for message in stream.messages} <= {"stream.open", "message", "t", nasty}
    assert (nasty in {message.type for message in stream.messages}) <= (not set(nasty) & set("\r\n\0"))
    assert messages(stream.body) == stream.messages
    bare = [message.data for message in stream.messages if not str(message.data).startswith("{")]
    assert [each for each in bare if each is not None] == [
        nasty.replace("\r\n", "\n").replace("\r", "\n")
    ] * len(bare)


OPTIONS = (
    "channel", "format", "types", "last", "since", "heartbeat", "client", "ticket", "lastEventId", "last_event_id", "evs_last_event_id", "x",
)  # fmt: skip


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
async def test_no_option_of_a_stream_breaks_out_of_its_line(target: Gateway, nasty: str) -> None:
    """What a URL says is quoted nowhere on a stream but in JSON, and in no header."""
    requests = [
        f"{method} {path}?{option}={quote(nasty)}{HOST.decode()}\r\n".encode()
        for option in OPTIONS
        for path in ("/events/user.a", "/events", f"/events/user.{quote(nasty, safe='')}")
        for method in ("GET", "HEAD", "OPTIONS")
    ]
    said = await asyncio.gather(*(last_answer(target, request) for request in requests))
    streams = [
        each.body for each in said if "event-stream" in each.headers.get("content-type", "") and each.body
    ]
    assert streams
    for stream in streams:
        assert {each.type for each in messages(stream)} <= {"stream.open", "stream.gap"}


BYTES = (b"\t", b"\x80", b"\xff", b"\xc2\x85", b"\xe2\x80\xa8", b"\0", b"\r", b"\n", b"\x0b", b"\x1b[2J", b"%0d%0aX: evil", b"\\r\\n", b"=?utf-8?q?=0D=0AX:?=")  # fmt: skip


@pytest.mark.parametrize("byte", BYTES, ids=ascii)
async def test_no_header_breaks_out_of_its_line(target: Gateway, byte: bytes) -> None:
    """Origins and the like are echoed: a header that begins a new one, or a 500, would be a stranger's."""
    told = (
        (b"GET /events/user.a", b"Origin"), (b"GET /events/user.%61", b"Origin"), (b"GET /events/nothing", b"Origin"), (b"HEAD /events/user.a", b"Origin"),
        (b"GET /events/user.a", b"Last-Event-ID"), (b"GET /events/user.a", b"X-Forwarded-For"), (b"GET /events/user.a", b"Cookie"),
        (b"GET /events/user.a", b"Authorization"), (b"GET /events/user.a", b"Host"), (b"POST /tickets?channel=orders", b"Authorization"),
        (b"OPTIONS /events/user.a", b"Origin"), (b"OPTIONS /hooks/hooks", b"WebHook-Request-Origin"), (b"OPTIONS /hooks/hooks", b"WebHook-Request-Rate"),
        (b"OPTIONS /events/user.a", b"Access-Control-Request-Method"), (b"OPTIONS /events/user.a", b"Access-Control-Request-Headers"),
        (b"POST /hooks/hooks?topic=orders", b"Idempotency-Key"), (b"POST /hooks/hooks?topic=orders", b"Content-Type"), (b"POST /hooks/hooks", b"ce-type"),
    )  # fmt: skip
    more = b"Origin: https://a.example.com\r\nAccess-Control-Request-Method: GET\r\nWebHook-Request-Origin: a.example.com\r\n"
    requests = []
    for start, name in told:
        value = b"https://a" + byte + b".example.com" if b"Origin" in name else b"a" + byte + b"b"
        rest = (
            b"".join(line + b"\r\n" for line in more.split(b"\r\n")[:-1] if name not in line)
            if start.startswith(b"OPTIONS")
            else b""
        )
        requests.append(start + HOST + rest + name + b": " + value + b"\r\nContent-Length: 0\r\n\r\n")
    await asyncio.gather(*(last_answer(target, request) for request in requests))


async def test_a_forged_id_is_a_stream(target: Gateway) -> None:
    """Any status but 200 would end an EventSource for good; each client learns where its stream begins."""
    await target.post("orders", "1")
    host = b"GET /events/orders" + HOST
    good = (await target.post("orders", "2"))[0].encode()
    for id in (*FORGED_IDS, good):
        shapes = [
            host + b"Last-Event-ID: " + id + b"\r\n\r\n",
            host + b"Last-Event-ID: " + id + b"\r\nLast-Event-ID: 1-0\r\n\r\n",
            host + b"Last-Event-ID: 1-0\r\nlast-event-id: " + id + b"\r\n\r\n",
            b"GET /events/orders?lastEventId=1-0" + HOST + b"Last-Event-ID: " + id + b"\r\n\r\n",
            b"GET /events?channel=orders,text&last=3&lastEventId=" + quote(id).encode() + HOST + b"\r\n",
            b"GET /events/%6frders" + HOST + b"Last-Event-ID: " + id + b"\r\n\r\n",
        ]
        said = await asyncio.gather(*(last_answer(target, request) for request in shapes))
        for request, answer in zip(shapes, said, strict=True):
            if answer.status in (400, 414):  # a URL of bytes that are no text, or too long
                assert b"?" in request.split(b"\r\n")[0] and len(id) > 1, (request, answer)
                continue
            assert answer.status == 200, (request, answer)
            first, *others = messages(answer.body)
            assert first.type == "stream.open" and first.json["resume"] in ("complete", "gap"), (
                request,
                answer,
            )
            told = {each.type for each in others}
            assert ("stream.gap" in told) == (first.json["resume"] == "gap") and told <= {
                "stream.gap",
                "message",
            }
