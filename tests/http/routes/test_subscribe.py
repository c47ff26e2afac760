"""GET /events: names, formats, filters, statuses."""

import json
import re
from collections.abc import Callable

import pytest

from tests.support.gateway import Gateway, gateway_running


async def test_the_bytes_of_a_stream(gateway: Gateway) -> None:
    """DESIGN's contract, to the byte: headers, stream.open, an event."""
    stream = await gateway.open("/events/orders")
    await stream.next()
    ids = await gateway.post("orders", '{"a":1}')
    await stream.next()
    (id,) = ids
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["vary"] == "Origin"
    assert stream.headers["server"] == "sse-gateway"
    pattern = (
        rb"retry: 3000\nevent: stream\.open\n"
        rb'data: \{"connection":"[0-9a-f]{24}","channels":\["orders"\],"resume":"none","heartbeat":15000\}\n'
        rb"id: [0-9]+-0\n\n"
        rb'data: \{"channel":"orders","id":"ID","type":null,"timestamp":[0-9]+,"payload":\{"a":1\}\}\n'
        rb"id: ID\n\n"
    ).replace(b"ID", id.encode())
    assert re.fullmatch(pattern, stream.body), stream.body


async def test_several_channels_in_one_order(gateway: Gateway) -> None:
    """Lists, repeats and duplicates work; stream.open names the channels as requested."""
    stream = await gateway.open("/events?channel=stock&channel=orders,stock,%20orders")
    assert (await stream.next()).json["channels"] == ["stock", "orders"]
    for number in range(6):
        await gateway.post(("orders", "stock", "news")[number % 3], str(number))
    assert [(await stream.next()).json["payload"] for _ in range(4)] == [0, 1, 3, 4]


async def test_the_format_is_the_channels_unless_the_query_says() -> None:
    """data is the payload alone; on a mixed stream each channel has its own."""
    channels = {"orders": {"format": "data"}, "stock": {"payload": "envelope", "format": "data"}}
    async with gateway_running({"channels": channels}) as gateway:
        own = await gateway.subscribe("/events?channel=orders,stock,news")
        envelopes = await gateway.subscribe("/events?channel=orders,stock,news&format=envelope")
        data = await gateway.subscribe("/events?channel=orders,stock,news&format=data")
        await gateway.post("orders", '{\n  "pretty": true\n}')
        await gateway.post("stock", '{"type":"moved","timestamp":5,"payload":[1]}')
        await gateway.post("news", '"x"')
        first, second, third = [await own.next() for _ in range(3)]
        assert (first.data, second.type, second.data) == ('{\n  "pretty": true\n}', "moved", "[1]")
        assert third.json["payload"] == "x"
        got = [await envelopes.next() for _ in range(3)]
        assert [message.json["payload"] for message in got] == [{"pretty": True}, [1], "x"]
        assert got[1].json["timestamp"] == 5
        assert [(await data.next()).data for _ in range(3)][1:] == ["[1]", '"x"']


async def test_one_listener_gets_all_types_as_messages() -> None:
    """format=message, of the query or of the channel: the envelope with its type inside, and no event field."""
    channels = {"orders": {"payload": "envelope"}, "stock": {"payload": "envelope", "format": "message"}}
    async with gateway_running({"channels": channels}) as gateway:
        asked = await gateway.subscribe("/events?channel=orders,stock&format=message")
        own = await gateway.subscribe("/events?channel=orders,stock")
        for topic in ("orders", "stock"):
            await gateway.post(topic, '{"type":"moved","payload":1}')
        messages = [await asked.next() for _ in range(2)]
        assert [(message.type, message.json["type"]) for message in messages] == [("message", "moved")] * 2
        assert all(message.id == message.json["id"] for message in messages)
        assert [(await own.next()).type for _ in range(2)] == ["moved", "message"]


async def test_types_filters_live_and_replayed_events_alike() -> None:
    """types=a,b delivers only those types, and the gateway's own events."""
    async with gateway_running({"channels": {"orders": {"payload": "envelope"}}}) as gateway:
        for type_ in ("a", "b", "c"):
            await gateway.post("orders", json.dumps({"type": type_, "payload": 1}))
        stream = await gateway.subscribe("/events/orders?types=a,c&last=10")
        assert [(await stream.next()).type for _ in range(2)] == ["a", "c"]
        for type_ in ("b", "c"):
            await gateway.post("orders", json.dumps({"type": type_, "payload": 2}))
        assert (await stream.next()).type == "c"


async def test_unknown_and_missing_channels(gateway: Gateway) -> None:
    """404 and 400 in JSON, with a stable code."""
    for path, status, code in (
        ("/events/nope", 404, "unknown_channel"),
        ("/events?channel=orders,nope", 404, "unknown_channel"),
        ("/events", 400, "no_channel"),
        ("/events?channel=,", 400, "no_channel"),
        ("/nowhere", 404, "not_found"),
        ("/events?" + "&".join(f"channel=c{number}" for number in range(51)), 400, "too_many_channels"),
    ):
        stream = await gateway.open(path)
        assert stream.status == status
        assert stream.headers["content-type"] == "application/json; charset=utf-8"
        assert json.loads(await stream.rest())["error"] == code
        # Refused clients must not hold descriptors.
        assert path == "/nowhere" or stream.headers["connection"] == "close"
    assert await gateway.metric('refused_total{reason="unknown_channel"}') == 2


async def test_head_and_other_methods(gateway: Gateway) -> None:
    """HEAD responds like GET, without a stream; other methods get a 405 with Allow."""
    async with gateway.session.head(f"{gateway.url}/events/orders") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
    async with gateway.session.post(f"{gateway.url}/events/orders") as answer:
        assert answer.status == 405
        assert (await answer.json())["error"] == "method_not_allowed"
        assert "GET" in answer.headers["Allow"]
    async with gateway.session.options(f"{gateway.url}/events/orders") as answer:
        assert answer.status == 204
    assert await gateway.metric("connections_total") == 0


@pytest.mark.parametrize("name", ["orders%0d%0aX: y", "%00", "%ff", "a" * 4000, "..%2f..", "%F0%9F%92%A9"])
async def test_strange_names_are_unknown_channels(gateway: Gateway, name: str) -> None:
    """Nothing that a client writes into a path comes back as a header or as a 500."""
    stream = await gateway.open(f"/events/{name}")
    assert stream.status in (400, 404)
    assert "x" not in stream.headers


def in_header(id: str) -> tuple[str, dict[str, str]]:
    return "/events/orders", {"Last-Event-ID": f"{id}, {id}"}


def in_two_headers(id: str) -> tuple[str, dict[str, str]]:
    return "/events/orders", {"Last-Event-ID": id, "last-event-id": id}


def in_query(id: str) -> tuple[str, dict[str, str]]:
    return f"/events/orders?lastEventId={id},{id}", {}


@pytest.mark.parametrize("doubled", [in_header, in_two_headers, in_query])
async def test_an_id_that_a_proxy_doubled_is_one(
    gateway: Gateway, doubled: Callable[[str], tuple[str, dict[str, str]]]
) -> None:
    """A client behind such a proxy is sent a gap after each reconnect, and has to load everything anew."""
    (id,) = await gateway.post("orders", "1")
    await gateway.post("orders", "2")
    path, headers = doubled(id)
    stream = await gateway.open(path, headers)
    assert (await stream.next()).json["resume"] == "complete"
    assert (await stream.next()).json["payload"] == 2


async def test_a_channel_without_history_has_ids_of_the_gateway_alone() -> None:
    """Docs that say otherwise than what a client finds in the stream of such a channel."""
    async with gateway_running({"channels": {"orders": {"history": "none"}}}) as gateway:
        stream = await gateway.open("/events/orders")
        opened = await stream.next()
        assert opened.id
        await gateway.post("orders", "1")
        event = await stream.next()
        assert event.json["id"] is None
        assert event.id == opened.id, "an event of its own has no id"
        assert stream.body.count(b"\nid: ") == 1
        again = await gateway.open("/events/orders", {"Last-Event-ID": opened.id})
        assert (await again.next()).json["resume"] == "gap"
        gap = await again.next()
        assert gap.type == "stream.gap"
        assert again.body.count(b"\nid: ") >= 1


async def test_an_envelope_on_the_wire_is_one_line(gateway: Gateway) -> None:
    """A client that parses each `data:` line alone would break on a payload with line breaks."""
    live = await gateway.subscribe("/events/orders")
    messages = await gateway.subscribe("/events/orders?format=message")
    text = '{\r\n  "a": ["\u2028\u2029\x85",\n 1.10]\r\n}'
    await gateway.post("orders", text)
    for stream in (live, messages, await gateway.subscribe("/events/orders?last=1")):
        assert (await stream.next()).json["payload"] == json.loads(text)
        lines = stream.body.decode().splitlines()
        assert sum(line.startswith("data: {") for line in lines) == 2, "stream.open, and the event"
        assert all(re.match(r"(data|event|id|retry): |:|$", line) for line in lines), lines
