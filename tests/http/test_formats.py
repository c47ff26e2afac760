"""Formats over HTTP: REST Proxy's paths, receipts while sending, CloudEvents' handshake, signatures, rates."""

import asyncio
import base64
import gzip
import hmac
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from standardwebhooks import Webhook

from gateway.core.errors import Unavailable
from gateway.core.event import EventId, pack_id
from gateway.core.token_bucket import TokenBucket
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running

V2 = {"Content-Type": "application/vnd.kafka.json.v2+json"}
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


async def post(gateway: Gateway, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
    async with gateway.session.post(gateway.url + path, data=body, headers=headers) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text else None, answer.headers


def offset(id: str) -> int:
    parsed = EventId.parse(id)
    assert parsed is not None
    return pack_id(parsed)


@pytest.mark.parametrize("path", ["/hooks/hooks/topics/orders", "/hooks/hooks/topics/orders/partitions/3"])
async def test_rest_proxy_v2(gateway: Gateway, path: str) -> None:
    """`/hooks/{source}` is a REST Proxy base URL; the offset is the event's id."""
    stream = await gateway.subscribe("/events/orders")
    body = b'{"records":[{"value":{"a":1}},{"key":"k","value":2}]}'
    status, answer, headers = await post(gateway, path, body, **V2)
    assert (status, headers["Content-Type"]) == (200, "application/vnd.kafka.v2+json")
    events = [await stream.next() for _ in range(2)]
    assert [event.json["payload"] for event in events] == [{"a": 1}, 2]
    assert [each["offset"] for each in answer["offsets"]] == [offset(event.id) for event in events]
    assert {each["partition"] for each in answer["offsets"]} == {3 if path.endswith("3") else 0}


async def test_rest_proxy_v2_takes_the_good_and_tells_the_bad(gateway: Gateway) -> None:
    """A batch of a REST Proxy client is not all or nothing, and a metric counts what was refused."""
    stream = await gateway.subscribe("/events/orders")
    large = json.dumps("x" * 300_000)
    body = f'{{"records":[{{"value":1}},{{"value":{large}}},{{"value":3}}]}}'
    status, answer, _ = await post(gateway, "/hooks/hooks/topics/orders", body.encode(), **V2)
    assert (status, [each["error_code"] for each in answer["offsets"]]) == (200, [None, 50002, None])
    assert [(await stream.next()).json["payload"] for _ in range(2)] == [1, 3]
    assert await gateway.metric('events_rejected_total{reason="too_large",source="hooks"}') == 1


async def test_rest_proxy_refusals(gateway: Gateway) -> None:
    """In the proxy's own words; per record where its topic leads nowhere."""
    status, answer, _ = await post(gateway, "/hooks/hooks/topics/orders", b'{"records":[]}', **V2)
    assert (status, answer["error_code"]) == (422, 42206)
    status, answer, _ = await post(gateway, "/hooks/hooks/topics/nope", b'{"records":[{"value":1}]}', **V2)
    assert (status, answer) == (404, {"error_code": 40401, "message": answer["message"]})
    avro = {"Content-Type": "application/vnd.kafka.avro.v2+json"}
    assert (await post(gateway, "/hooks/hooks/topics/orders", b"{}", **avro))[0] == 415
    v3 = "/hooks/hooks/v3/clusters/c/topics/orders/records"
    assert (await post(gateway, v3, b""))[:2] == (
        422,
        {"error_code": 422, "message": "the body holds no record"},
    )
    assert (await post(gateway, v3, b"[1]"))[0] == 422


async def test_v3_gives_receipts_while_it_is_sent(gateway: Gateway) -> None:
    """A client waits for the receipt of one record before it sends the next, on one request."""
    stream = await gateway.subscribe("/events/orders")
    sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> Any:
        while (part := await sending.get()) is not None:
            yield part

    url = f"{gateway.url}/hooks/hooks/v3/clusters/c1/topics/orders/records"
    sending.put_nowait(b'{"value":{"type":"JSON","data":{"n":0}}}{"val')
    async with gateway.session.post(url, data=body()) as answer, safety_net():
        first = json.loads(await answer.content.readline())
        event = await stream.next()
        assert (first["error_code"], first["cluster_id"], first["topic_name"]) == (200, "c1", "orders")
        assert (first["offset"], event.json["payload"]) == (offset(event.id), {"n": 0})
        sending.put_nowait(b'ue":{"type":"JSON","data":1}}\n')
        assert json.loads(await answer.content.readline())["value"] == {"size": 1}
        sending.put_nowait(b'{"value":{"type":"STRING","data":"no json"}} {"value":{"type":"JSON","data":2}}')
        told = [json.loads(await answer.content.readline()) for _ in range(2)]
        assert [each["error_code"] for each in told] == [422, 200]
        sending.put_nowait(b'{"cut')
        sending.put_nowait(None)
        assert json.loads(await answer.content.readline())["error_code"] == 422
        assert await answer.content.read() == b""
    assert [(await stream.next()).json["payload"] for _ in range(2)] == [1, 2]


async def test_v3_ends_at_a_drain(tmp_path: Any) -> None:
    """A request without an end must not keep the gateway from stopping."""
    sending: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> Any:
        while (part := await sending.get()) is not None:
            yield part

    async with aiohttp.ClientSession() as session:
        async with gateway_running({"timeouts": {"request": "1m"}}) as gateway:
            url = f"{gateway.url}/hooks/hooks/v3/clusters/c1/topics/orders/records"
            sending.put_nowait(b'{"value":{"type":"JSON","data":1}}')
            answer = await session.post(url, data=body())
            assert json.loads(await answer.content.readline())["error_code"] == 200
        async with safety_net():
            assert await answer.content.read() == b""
        answer.close()


async def test_v3_with_a_signature_is_answered_at_its_end() -> None:
    """Who sent it is known only then."""
    over = {"sources": {"hooks": {"verify": {"none": None, "github": ["s3cret"]}}}}
    async with gateway_running(over) as gateway:
        body = b'{"value":{"type":"JSON","data":1}}' * 3
        headers = {"X-Hub-Signature-256": "sha256=" + hmac.new(b"s3cret", body, "sha256").hexdigest()}
        url = f"{gateway.url}/hooks/hooks/v3/clusters/c/topics/orders/records"
        async with gateway.session.post(url, data=body, headers=headers) as answer:
            assert answer.status == 200
            assert len((await answer.text()).splitlines()) == 3
        async with gateway.session.post(url, data=body + b" ", headers=headers) as answer:
            assert answer.status == 401
            assert (await answer.json())["error_code"] == 401


async def test_a_source_of_one_format_takes_no_other_path() -> None:
    """REST Proxy v3 is a format too, on both of its paths."""
    async with gateway_running({"sources": {"hooks": {"format": "cloudevents"}}}) as gateway:
        for path in ("records", "records:batch"):
            url = f"/hooks/hooks/v3/clusters/c/topics/orders/{path}"
            status, answer, _ = await post(gateway, url, b'{"value":{"type":"JSON","data":1}}')
            assert (status, answer["error_code"]) == (415, 415)


async def test_the_handshake_of_cloudevents(gateway: Gateway) -> None:
    """Senders request permission before they post (webhooks 1.0, §4); a refusal ends their subscription."""
    asked = {"WebHook-Request-Origin": "events.example.com", "WebHook-Request-Rate": "120"}
    async with gateway.session.options(f"{gateway.url}/hooks/hooks", headers=asked) as answer:
        assert answer.status == 200
        assert answer.headers["WebHook-Allowed-Origin"] == "events.example.com"
        assert answer.headers["WebHook-Allowed-Rate"] == "120"
        assert "POST" in answer.headers["Allow"]


async def test_the_places_of_a_request_reach_the_event() -> None:
    """Channel by key, type by header, once per JSON pointer."""
    over = {
        "sources": {"hooks": {"event": {"type": "{headers.x-event}", "deduplicate": "{/id}"}}},
        "channels": {
            "user.{id}": {
                "from": [{"source": "hooks", "topic": "users", "fields": {"id": "{key}"}}],
                "access": "public",
            }
        },
    }
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/user.7")
        record = b'{"records":[{"key":"7","value":{"id":1}}]}'
        path = "/hooks/hooks/topics/users"
        first = await post(gateway, path, record, **V2, **{"X-Event": "moved"})
        again = await post(gateway, path, record, **V2, **{"X-Event": "moved"})
        assert first[1] == again[1]
        event = await stream.next()
        assert (event.type, event.json["payload"]) == ("moved", {"id": 1})
        await post(gateway, path, record.replace(b'"id":1', b'"id":2'), **V2)
        assert (await stream.next()).json["payload"] == {"id": 2}


async def test_signed_posts_rotated_replayed_and_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    """A message that comes again is one event, and the log says why without a secret others are refused."""
    new = "whsec_" + base64.b64encode(b"n" * 32).decode()
    over = {
        "logging": {"level": "info"},
        "sources": {
            "hooks": {"verify": {"none": None, "standard_webhooks": [new, SECRET]}, "topic": "orders"}
        },
    }
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/orders")
        now = int(datetime.now(UTC).timestamp())

        def headers(secret: str, id: str, at: int, body: str = "1") -> dict[str, str]:
            signature = Webhook(secret).sign(id, datetime.fromtimestamp(at, UTC), body)
            return {"webhook-id": id, "webhook-timestamp": str(at), "webhook-signature": signature}

        first = await post(gateway, "/hooks/hooks", b"1", **headers(SECRET, "m1", now))
        assert first[0] == 200
        again = await post(gateway, "/hooks/hooks", b"1", **headers(SECRET, "m1", now))
        assert again[:2] == first[:2]
        retry = await post(gateway, "/hooks/hooks", b"1", **headers(SECRET, "m1", now + 1))
        assert retry[:2] == first[:2]
        assert (await post(gateway, "/hooks/hooks", b"2", **headers(new, "m2", now, "2")))[0] == 200
        for bad, code in (
            (headers("whsec_" + base64.b64encode(b"x" * 32).decode(), "m3", now), "bad_signature"),
            (headers(SECRET, "m3", now - 400), "expired_signature"),
            ({**headers(SECRET, "m3", now), "webhook-id": "m4"}, "bad_signature"),
        ):
            status, answer, _ = await post(gateway, "/hooks/hooks", b"1", **bad)
            assert (status, answer["error"]) == (401, code)
        assert [(await stream.next()).json["payload"] for _ in range(2)] == [1, 2]
        assert await gateway.metric('events_duplicate_total{source="hooks"}') == 2
    lines = "".join(capfd.readouterr())
    for word in ("duplicates_dropped", "expired_signature", "bad_signature"):
        assert word in lines
    assert SECRET[6:30] not in lines


async def test_the_same_message_at_once_is_taken_once(tmp_path: Any) -> None:
    """Twenty copies at the same moment, on a log that takes its time; then to the path of REST Proxy v3."""
    over = {
        "broker": {"url": f"sqlite:///{tmp_path}/log.db"},
        "sources": {"hooks": {"verify": {"none": None, "stripe": ["s3cret"]}}},
    }
    async with gateway_running(over) as gateway:
        now = str(int(datetime.now(UTC).timestamp()))
        body = b'{"id":"evt_1","type":"paid"}'
        signature = hmac.new(b"s3cret", now.encode() + b"." + body, "sha256").hexdigest()
        headers = {"Stripe-Signature": f"t={now},v1={signature}"}
        stream = await gateway.subscribe("/events/orders")
        path = "/hooks/hooks?topic=orders"
        answers = await asyncio.gather(*(post(gateway, path, body, **headers) for _ in range(20)))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses[0] == 200
        assert set(statuses[1:]) <= {200, 503}
        v3 = "/hooks/hooks/v3/clusters/c/topics/other/records"
        assert (await post(gateway, v3, body, **headers))[0] == 200, "whoever saw it cannot send it elsewhere"
        event = await stream.next()
        assert (event.type, event.json["payload"]["id"]) == ("paid", "evt_1")
        await gateway.daemon.broker.append([])
        assert await gateway.metric('events_published_total{channel="orders"}') == 1


SCHEMES: dict[str, Any] = {
    "standard": {"standard_webhooks": [SECRET]},
    "github": {"github": ["s3cret"]},
    "stripe": {"stripe": ["s3cret"]},
    "hmac with an id": {
        "hmac": {"secrets": ["s3cret"], "header": "sig", "content": "{id}.{body}", "id_header": "id"}
    },
    "hmac with a time": {
        "hmac": {
            "secrets": ["s3cret"], "header": "sig", "content": "{timestamp}.{body}", "timestamp_header": "time"
        }
    },
    "key": {"none": True},
}  # fmt: skip


def signed_by(scheme: str, body: bytes, id: str = "m1") -> dict[str, str]:
    """Return the headers of a message by a scheme of `SCHEMES`."""
    now = datetime.now(UTC)
    at = str(int(now.timestamp()))

    def mac(text: bytes) -> str:
        return hmac.new(b"s3cret", text, "sha256").hexdigest()

    return {
        "standard": {
            "webhook-id": id,
            "webhook-timestamp": at,
            "webhook-signature": Webhook(SECRET).sign(id, now, body.decode()),
        },
        "github": {"X-Hub-Signature-256": f"sha256={mac(body)}", "X-GitHub-Delivery": id},
        "stripe": {"Stripe-Signature": f"t={at},v1={mac(at.encode() + b'.' + body)}"},
        "hmac with an id": {"sig": mac(f"{id}.".encode() + body), "id": id},
        "hmac with a time": {"sig": mac(at.encode() + b"." + body), "time": at},
        "key": {"Idempotency-Key": id},
    }[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("?topic=orders", b'{"n":1}'),
        ("?topic=orders", b'[{"n":1},{"n":2}]'),
        ("/topics/orders", b'{"records":[{"value":{"n":1}},{"value":{"n":2}}]}'),
        ("/v3/clusters/c/topics/orders/records", b'{"value":{"type":"JSON","data":{"n":1}}}'),
    ],
)
async def test_a_redelivery_is_a_success_on_every_node(
    tmp_path: Any, scheme: str, path: str, body: bytes
) -> None:
    """A sender whose 200 got lost gets the same response from any node, and its event exists once."""
    verify = {"none": None, **SCHEMES[scheme]}
    over = {
        "broker": {"url": f"sqlite:///{tmp_path}/log.db"},
        "sources": {"hooks": {"verify": verify}},
    }
    headers = signed_by(scheme, body) | (V2 if path == "/topics/orders" else {})
    async with gateway_running(over) as one, gateway_running(over) as other:
        stream = await other.subscribe("/events/orders")
        answers = []
        for gateway in (one, one, other, one, other):
            async with gateway.session.post(
                f"{gateway.url}/hooks/hooks{path}", data=body, headers=headers
            ) as answer:
                answers.append((answer.status, _without_times(await answer.text())))
        assert answers == [answers[0]] * 5
        assert answers[0][0] == 200
        events = body.count(b'"n"')
        await post(one, "/hooks/hooks?topic=orders", b'"last"', **signed_by(scheme, b'"last"', "m2"))
        assert [(await stream.next()).json["payload"] for _ in range(events + 1)][-1] == "last"
        counts = [await each.metric('events_duplicate_total{source="hooks"}') for each in (one, other)]
        assert counts == [2 * events, 2 * events]


def _without_times(answer: str) -> str:
    """Return an answer but for the moment of a receipt."""
    return re.sub(r'"timestamp":"[^"]*"', "", answer)


async def test_an_idempotency_key_with_another_body_is_refused_on_every_node(tmp_path: Any) -> None:
    """A sender that reuses keys by mistake would lose events without a word."""
    over = {"broker": {"url": f"sqlite:///{tmp_path}/log.db"}}
    key = {"Idempotency-Key": "k1"}
    paths = ["?topic=orders", "/v3/clusters/c/topics/orders/records"]
    async with gateway_running(over) as one, gateway_running(over) as other:
        stream = await other.subscribe("/events/orders")
        assert (await post(one, f"/hooks/hooks{paths[0]}", b'{"n":1}', **key))[0] == 200
        for gateway in (one, other):
            status, answer, _ = await post(gateway, f"/hooks/hooks{paths[0]}", b'{"n":2}', **key)
            assert (status, answer["error"]) == (422, "idempotency_key_reused")
            status, answer, _ = await post(gateway, f"/hooks/hooks{paths[0]}", b'[{"n":1},{"n":2}]', **key)
            assert (status, answer["error"]) == (422, "idempotency_key_reused")
            record = b'{"value":{"type":"JSON","data":{"n":3}}}'
            status, answer, _ = await post(gateway, f"/hooks/hooks{paths[1]}", record, **key)
            assert (status, answer["error_code"]) == (200, 422)
            metric = 'events_rejected_total{reason="idempotency_key_reused",source="hooks"}'
            assert await gateway.metric(metric) == 3
        await post(one, f"/hooks/hooks{paths[0]}", b'"last"')
        assert [(await stream.next()).json["payload"] for _ in range(2)] == [{"n": 1}, "last"]


async def test_a_signed_message_that_met_an_outage_may_come_again() -> None:
    """On REST Proxy's v3 path too, a record that is not in the log counts as new."""
    over = {"sources": {"hooks": {"verify": {"none": None, "stripe": ["s3cret"]}}}}
    async with gateway_running(over) as gateway:
        now = str(int(datetime.now(UTC).timestamp()))
        body = b'{"value":{"type":"JSON","data":1}}'
        signature = hmac.new(b"s3cret", now.encode() + b"." + body, "sha256").hexdigest()
        headers = {"Stripe-Signature": f"t={now},v1={signature}"}
        appender: Any = gateway.daemon.appender
        append = appender.append

        async def away(*arguments: Any) -> Any:
            raise Unavailable("the log is away")

        path = "/hooks/hooks/v3/clusters/c/topics/orders/records"
        appender.append = away
        assert (await post(gateway, path, body, **headers))[0] == 503
        appender.append = append
        async with gateway.session.post(gateway.url + path, data=body, headers=headers) as answer:
            assert json.loads(await answer.text())["error_code"] == 200


async def test_a_slowed_stream_ends_at_a_drain() -> None:
    """A sender that is far over its rate must not delay a shutdown."""
    over = {"sources": {"hooks": {"rate": "1/s"}}, "timeouts": {"request": "1m"}}
    sending: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> Any:
        while True:
            yield await sending.get()

    async with aiohttp.ClientSession() as session:
        async with gateway_running(over) as gateway:
            url = f"{gateway.url}/hooks/hooks/v3/clusters/c/topics/orders/records"
            for _ in range(2):
                sending.put_nowait(b'{"value":{"type":"JSON","data":1}}' * 500)
            answer = await session.post(url, data=body())
            for _ in range(500):
                await answer.content.readline()
            sending.put_nowait(b'{"value":{"type":"JSON","data":1}}' * 500)
            await asyncio.sleep(0.2)
        async with safety_net():
            rest = (await answer.content.read()).splitlines()
        assert json.loads(rest[-1])["error_code"] == 503
        answer.close()


async def test_a_bomb_of_records_ends_at_its_pace(gateway: Gateway) -> None:
    """15 KB of gzip may hold millions of records: others must run meanwhile, and nothing is inflated ahead."""
    bomb = gzip.compress(b"{}" * 2_000_000)
    url = f"{gateway.url}/hooks/hooks/v3/clusters/c/topics/orders/records"
    held = gateway.daemon.body_reader
    async with gateway.session.post(url, data=bomb, headers={"Content-Encoding": "gzip"}) as answer:
        assert json.loads(await answer.content.readline())["error_code"] == 200
        for _ in range(3):
            await gateway.post("stock", "1")
        assert held._reserved_bytes <= 64 * 1024
        answer.close()


@pytest.mark.parametrize("path", ["?topic=orders", "/v3/clusters/c/topics/orders/records"])
async def test_bytes_after_a_compressed_body_are_refused_at_once(gateway: Gateway, path: str) -> None:
    """zlib would keep them all, and no limit would see them."""

    async def body() -> Any:
        yield gzip.compress(b" ")
        while True:
            yield b"x" * 100_000

    url = f"{gateway.url}/hooks/hooks{path}"
    try:
        async with gateway.session.post(url, data=body(), headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status in (400, 422)
    except aiohttp.ClientConnectionError:
        pass  # it still sent when it was closed: the answer may be lost to a reset
    assert gateway.daemon.body_reader._reserved_bytes == 0


async def test_a_stream_that_breaks_off_gives_its_memory_back(
    gateway: Gateway, capfd: pytest.CaptureFixture[str]
) -> None:
    """The memory of an unfinished record is counted, and is freed with its request."""
    head = "POST /hooks/hooks/v3/clusters/c/topics/orders/records HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head.encode() + b'{"value":"' + b"x" * 500_000)
    bodies = gateway.daemon.body_reader
    await eventually(lambda: bodies._reserved_bytes > 400_000)
    writer.transport.abort()
    await eventually(lambda: bodies._reserved_bytes == 0)
    await gateway.post("orders", "1")
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_what_expects_something_else_is_a_417(gateway: Gateway) -> None:
    """Only 100-continue has a meaning (RFC 9110 §10.1.1)."""
    async with gateway.session.post(
        f"{gateway.url}/hooks/hooks", data=b"1", headers={"Expect": "bananas"}
    ) as answer:
        assert answer.status == 417


async def test_a_log_that_is_away_is_503_whatever_else_is_wrong(gateway: Gateway) -> None:
    """A 404 for one record must not hide that the others may be tried again."""

    async def away(*arguments: Any) -> Any:
        raise Unavailable("the log is away")

    appender: Any = gateway.daemon.appender
    appender.append = away
    body = b'{"records":[{"value":1},{"value":"bad","timestamp":-5}]}'
    status, answer, headers = await post(gateway, "/hooks/hooks/topics/orders", body, **V2)
    assert (status, answer["error_code"], "Retry-After" in headers) == (503, 50301, True)


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def set_clock(gateway: Gateway, clock: Callable[[], float]) -> None:
    """Let the rate of the source ``hooks`` go by this clock."""
    source: Any = gateway.daemon.source_manager.supervisors["hooks"]._source
    rate: TokenBucket = source._rate
    rate._clock, rate._refilled_at = clock, clock()


async def test_a_rate_is_429_with_the_time_to_wait() -> None:
    """A post that began within the rate is accepted whole; the next must wait as long as Retry-After says."""
    async with gateway_running({"sources": {"hooks": {"rate": "10/s"}}}) as gateway:
        clock = Clock()
        set_clock(gateway, clock)
        path = "/hooks/hooks?topic=orders"
        assert (await post(gateway, path, b"[" + b"1," * 29 + b"1]"))[0] == 200
        status, answer, headers = await post(gateway, path, b"1")
        assert (status, answer["error"]) == (429, "rate_limited")
        assert headers["Retry-After"] == "3"  # 30 of which 10 may come at once, and one more
        status, answer, headers = await post(gateway, "/hooks/hooks/topics/orders", b"{}", **V2)
        assert (status, answer["error_code"], "Retry-After" in headers) == (429, 42901, True)
        clock.now += 2.0
        assert (await post(gateway, path, b"1"))[0] == 429
        clock.now += 1.0
        assert (await post(gateway, path, b"1"))[0] == 200


@pytest.mark.idle_clock
async def test_a_rate_slows_a_stream_of_records_down() -> None:
    """A request without an end must not evade the rate."""
    async with gateway_running({"sources": {"hooks": {"rate": "20/s"}}}) as gateway:
        set_clock(gateway, asyncio.get_running_loop().time)
        url = f"{gateway.url}/hooks/hooks/v3/clusters/c/topics/orders/records"

        sending: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def body() -> Any:
            while (part := await sending.get()) is not None:
                yield part

        loop = asyncio.get_running_loop()
        before = loop.time()
        sending.put_nowait(b'{"value":{"type":"JSON","data":1}}' * 30)
        async with gateway.session.post(url, data=body()) as answer:
            for _ in range(3):
                for _ in range(30):
                    await answer.content.readline()
                sending.put_nowait(b'{"value":{"type":"JSON","data":1}}' * 30)
            sending.put_nowait(None)
            assert loop.time() - before > 1.5, "90 at 20/s, of which 20 at once, and the last ones on credit"


async def test_bodies_in_memory_are_bounded_all_together(gateway: Gateway) -> None:
    """Many senders at once must not be the end of the process."""
    bodies = gateway.daemon.body_reader
    bodies.max_bytes = 100_000
    arrived = asyncio.Event()

    async def slow() -> Any:
        yield b" " * 90_000
        await arrived.wait()
        yield b"1"

    path = "/hooks/hooks?topic=orders"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = [asyncio.create_task(session.post(gateway.url + path, data=slow())) for _ in range(12)]
        async with safety_net():
            while sum(task.done() for task in tasks) < 4:
                await asyncio.sleep(0.01)
        arrived.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(answer.status for answer in answers) == [200] * 8 + [503] * 4
        assert all("Retry-After" in answer.headers for answer in answers if answer.status == 503)
    assert bodies._reserved_bytes == 0
    await gateway.post("orders", "1")


async def test_one_address_cannot_use_up_what_others_need() -> None:
    """A signature is known only at a body's end, so strangers can send large ones: two per address are held."""
    config = {
        "limits": {"webhook_body": "1MiB"},
        "sources": {"signed": {"type": "webhook", "verify": {"github": ["s" * 16]}, "topic": "orders"}},
    }
    async with gateway_running(config) as gateway:
        bodies, strangers = gateway.daemon.body_reader, []
        head = (
            "POST /hooks/signed HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: 1048576\r\n"
            f"X-Hub-Signature-256: sha256={'0' * 64}\r\n\r\n"
        )
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(head.encode() + b"x" * 700_000)
            strangers.append((reader, writer))
        async with safety_net():
            refused = [(await reader.read(100)).split()[1] for reader, _ in strangers[2:]]
        assert refused == [b"503", b"503"]
        assert bodies._reserved_bytes_by_client.keys() == {"192.0.2.1"}
        for address, status in (("192.0.2.1", 503), ("192.0.2.2", 401)):
            code, _, _ = await post(
                gateway, "/hooks/signed", b"x" * 700_000,
                **{"X-Hub-Signature-256": f"sha256={'0' * 64}", "X-Forwarded-For": address},
            )  # fmt: skip
            assert code == status
        for _, writer in strangers:
            writer.transport.abort()
        await eventually(lambda: bodies._reserved_bytes == 0 and not bodies._reserved_bytes_by_client)
