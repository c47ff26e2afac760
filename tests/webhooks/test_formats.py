"""Every format: what a request holds, and the answer, byte for byte where a sender parses it."""

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.placeholders import Expression
from gateway.core.errors import BadRequest, GatewayError, PayloadTooLarge, RecordRejected, Unavailable
from gateway.core.event import EventId, Record, pack_id
from gateway.webhooks.detect import parse_post
from gateway.webhooks.formats import rest_proxy
from gateway.webhooks.formats.base import ParsedPost, Post

ID = EventId(1_700_000_000_000, 3)
OFFSET = pack_id(ID)
V2 = "application/vnd.kafka.v2+json"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Case(NamedTuple):
    name: str
    post: Post
    records: list[tuple[str, bytes, dict[str, Any]]]
    """Topic, payload and what else is there."""
    status: int
    content_type: str
    answer: bytes


def post(body: bytes, content_type: str = "", **more: Any) -> Post:
    return Post(body, content_type=content_type, **more)


def offsets(*rows: tuple[int, int | None]) -> bytes:
    each = [
        f'{{"partition":{partition},"offset":{OFFSET},"error_code":null,"error":null}}'
        for partition, _ in rows
    ]
    return f'{{"offsets":[{",".join(each)}],"key_schema_id":null,"value_schema_id":null}}'.encode()


def accepted(count: int) -> bytes:
    ids = ",".join([f'"{ID}"'] * count)
    return f'{{"accepted":{count},"ids":[{ids}]}}\n'.encode()


KNATIVE = {
    "ce-specversion": "1.0", "ce-type": "dev.knative.kafka.event", "ce-source": "/apis/v1/kafkasource#orders",
    "ce-id": "partition:2/offset:7", "ce-subject": "partition:2#7", "ce-key": "k%20%C3%A9", "ce-kafkaheadertrace": "t1",
    "ce-time": "2026-01-01T00:00:00Z",
}  # fmt: skip
CE: dict[str, str] = {
    "ce-specversion": "1.0",
    "ce-type": "order.created",
    "ce-source": "/shop",
    "ce-id": "17",
}
STRUCTURED = b'{"specversion":"1.0","id":"17","source":"/shop","type":"order.created","n":5,"data":{"a" : 1}}'
AWS = {"topic": "orders", "partition": 1, "offset": 9, "timestamp": 1_700_000_000_123, "key": b64("k"),
       "value": b64('{"a":1}'), "headers": [{"Trace": [116, 49]}], "eventSource": "aws:kafka", "eventSourceArn": "arn:x"}  # fmt: skip

CASES = [
    Case("one JSON value", post(b' {"a": 1}', topic="t"), [("t", b' {"a": 1}', {})], 200, "application/json", accepted(1)),
    Case("an array of a Connect sink", post(b'[{"a":1},"x"]', "application/json", topic="t"),
         [("t", b'{"a":1}', {}), ("t", b'"x"', {"batch_index": 1})], 200, "application/json", accepted(2)),
    Case("lines of a Connect sink", post(b'{"a":1}\n{"a":2}', topic="t"),
         [("t", b'{"a":1}', {}), ("t", b'{"a":2}', {"batch_index": 1})], 200, "application/json", accepted(2)),
    Case("text", post(b"hello", "text/plain", topic="t"), [("t", b"hello", {})], 200, "application/json", accepted(1)),
    Case("octets", post(b"\xff\x00", "application/octet-stream", topic="t"),
         [("t", b"\xff\x00", {})], 200, "application/json", accepted(1)),
    Case("NDJSON", post(b'{"a":1}\n\n{"a":2}\n', "application/x-ndjson", topic="t"),
         [("t", b'{"a":1}', {}), ("t", b'{"a":2}', {"batch_index": 1})], 200, "application/json", accepted(2)),
    Case("Debezium", post(b'{"op":"c"}', "application/json", topic="t", shared_values={"headers.x-debezium-h": b64("v")}),
         [("t", b'{"op":"c"}', {"shared_values": {"headers.x-debezium-h": b64("v")}})], 200, "application/json", accepted(1)),
    Case("a retry by its key", post(b"[1,2]", topic="t", message_id="abc"),
         [("t", b"1", {"deduplication_key": "abc/0"}), ("t", b"2", {"deduplication_key": "abc/1", "batch_index": 1})], 200, "application/json", accepted(2)),
    Case("REST Proxy v2, json", post(
            b'{"records":[{"key":"k","value":{"a" : 1},"partition":3},{"value":null},{"key":{"id":1},"value":"x"}]}',
            "application/vnd.kafka.json.v2+json", path="topics", topic="orders"),
         [("orders", b'{"a" : 1}', {"placeholder_values": {"partition": "3", "key": "k"}}),
          ("orders", b"null", {"placeholder_values": {"partition": "0"}, "batch_index": 1}),
          ("orders", b'"x"', {"placeholder_values": {"partition": "0", "key": '{"id":1}'}, "batch_index": 2})],
         200, V2, offsets((3, 0), (0, 0), (0, 0))),
    Case("REST Proxy v2, binary", post(
            json.dumps({"records": [{"key": b64("k"), "value": b64('{"a":1}')}]}).encode(),
            "application/vnd.kafka.binary.v2+json", path="topics", topic="orders", partition=4),
         [("orders", b'{"a":1}', {"placeholder_values": {"partition": "4", "key": "k"}})], 200, V2, offsets((4, 0))),
    Case("Strimzi's bridge, text", post(
            json.dumps({"records": [{"value": "hello", "timestamp": 5, "headers": [{"key": "H", "value": b64("v")}]}]}).encode(),
            "application/vnd.kafka.text.v2+json", path="topics", topic="orders"),
         [("orders", b"hello", {"placeholder_values": {"partition": "0", "headers.h": "v"}, "timestamp_ms": 5})], 200, V2, offsets((0, 0))),
    Case("REST Proxy v1", post(b'{"records":[{"value":1}]}', "application/vnd.kafka.json.v1+json", path="topics", topic="orders"),
         [("orders", b"1", {"placeholder_values": {"partition": "0"}})], 200, "application/vnd.kafka.v1+json", offsets((0, 0))),
    Case("REST Proxy v1 without an embedded format", post(b'{"records":[{"key":null,"value":"aGk=","partition":null}]}',
            "application/vnd.kafka.v1+json", path="topics", topic="orders"),
         [("orders", b"hi", {"placeholder_values": {"partition": "0"}})], 200, "application/vnd.kafka.v1+json", offsets((0, 0))),
    Case("mq-bridge's tombstone", post(b"", topic="t", headers={"mqb.kafka.tombstone": "true"}),
         [("t", b"null", {})], 200, "application/json", accepted(1)),
    Case("REST Proxy v2 as plain JSON", post(b'{"records":[{"value":1}]}', "application/json", path="topics", topic="orders"),
         [("orders", b"1", {"placeholder_values": {"partition": "0"}})], 200, V2, offsets((0, 0))),
    Case("records elsewhere are data", post(b'{"records":[{"value":1}]}', "application/json", topic="t"),
         [("t", b'{"records":[{"value":1}]}', {})], 200, "application/json", accepted(1)),
    Case("REST Proxy v3, batch", post(
            b'{"entries":[{"id":"a","key":{"type":"STRING","data":"k"},"value":{"type":"JSON","data":{"n" : 1}},'
            b'"timestamp":"2026-01-01T00:00:00Z","partition_id":2},{"id":"b","value":{"type":"BINARY","data":"aGk="}}]}',
            "application/json", path="records:batch", topic="orders", cluster="c"),
         [("orders", b'{"n" : 1}', {"placeholder_values": {"partition": "2", "key": "k"}, "timestamp_ms": 1_767_225_600_000}),
          ("orders", b"hi", {"placeholder_values": {"partition": "0"}, "batch_index": 1})],
         207, "application/json",
         f'{{"successes":[{{"id":"a","error_code":200,"cluster_id":"c","topic_name":"orders","partition_id":2,'
         f'"offset":{OFFSET},"timestamp":"2026-01-01T00:00:00.000Z","key":{{"size":1}},"value":{{"size":9}}}},'
         f'{{"id":"b","error_code":200,"cluster_id":"c","topic_name":"orders","partition_id":0,"offset":{OFFSET},'
         f'"timestamp":"2023-11-14T22:13:20.000Z","value":{{"size":2}}}}],"failures":[]}}'.encode()),
    Case("CloudEvents, binary", post(b'{"a":1}', "application/json", headers=CE),
         [("order.created", b'{"a":1}', {"type": "order.created", "deduplication_key": "/shop 17",
           "placeholder_values": {"ce.specversion": "1.0", "ce.type": "order.created", "ce.source": "/shop", "ce.id": "17"}})], 204, "", b""),
    Case("CloudEvents, binary, without data", post(b"", headers=CE, topic="t"),
         [("t", b"null", {"type": "order.created", "deduplication_key": "/shop 17",
           "placeholder_values": {"ce.specversion": "1.0", "ce.type": "order.created", "ce.source": "/shop", "ce.id": "17"}})], 204, "", b""),
    Case("Knative's KafkaSource", post(b"raw", "application/octet-stream", headers=KNATIVE),
         [("orders", b"raw", {"type": "dev.knative.kafka.event", "deduplication_key": "/apis/v1/kafkasource#orders partition:2/offset:7",
           "timestamp_ms": 1_767_225_600_000, "placeholder_values": {
             **{f"ce.{name[3:]}": text for name, text in KNATIVE.items()}, "ce.key": "k é", "key": "k é",
             "partition": "2", "offset": "7", "headers.trace": "t1"}})], 204, "", b""),
    Case("CloudEvents, structured", post(STRUCTURED, "application/cloudevents+json"),
         [("order.created", b'{"a" : 1}', {"type": "order.created", "deduplication_key": "/shop 17", "placeholder_values": {
             "ce.specversion": "1.0", "ce.id": "17", "ce.source": "/shop", "ce.type": "order.created", "ce.n": "5"}})], 204, "", b""),
    Case("CloudEvents, batch", post(
            b"[" + STRUCTURED + b',{"specversion":"1.0","id":"18","source":"/shop","type":"x","data_base64":"aGk="}]',
            "application/cloudevents-batch+json", topic="t"),
         [("t", b'{"a" : 1}', {"type": "order.created", "deduplication_key": "/shop 17", "placeholder_values": {
             "ce.specversion": "1.0", "ce.id": "17", "ce.source": "/shop", "ce.type": "order.created", "ce.n": "5"}}),
          ("t", b"hi", {"type": "x", "deduplication_key": "/shop 18", "batch_index": 1, "placeholder_values": {
             "ce.specversion": "1.0", "ce.id": "18", "ce.source": "/shop", "ce.type": "x"}})], 204, "", b""),
    Case("CloudEvents, an empty batch", post(b"[]", "application/cloudevents-batch+json"), [], 204, "", b""),
    Case("CloudEvents, text data", post(STRUCTURED.replace(b'{"a" : 1}', b'"hi","datacontenttype":"text/plain"'),
                                        "application/cloudevents+json", topic="t"),
         [("t", b"hi", {"type": "order.created", "deduplication_key": "/shop 17", "placeholder_values": {
             "ce.specversion": "1.0", "ce.id": "17", "ce.source": "/shop", "ce.type": "order.created", "ce.n": "5",
             "ce.datacontenttype": "text/plain"}})], 204, "", b""),
    Case("EventBridge Pipes", post(json.dumps([AWS]).encode(), "application/json"),
         [("orders", b'{"a":1}', {"deduplication_key": "arn:x/orders/1/9", "timestamp_ms": 1_700_000_000_123,
           "placeholder_values": {"partition": "1", "offset": "9", "key": "k", "headers.trace": "t1"}})], 200, "application/json", accepted(1)),
    Case("MSK", post(json.dumps({"eventSource": "aws:kafka", "eventSourceArn": "arn:y",
                                 "records": {"orders-1": [{**AWS, "eventSourceArn": "", "value": None}]}}).encode()),
         [("orders", b"null", {"deduplication_key": "arn:y/orders/1/9", "timestamp_ms": 1_700_000_000_123,
           "placeholder_values": {"partition": "1", "offset": "9", "key": "k", "headers.trace": "t1"}})], 200, "application/json", accepted(1)),
    Case("words of AWS in data", post(b'{"note":"aws:kafka","x":"aws:kafka"}', topic="t"),
         [("t", b'{"note":"aws:kafka","x":"aws:kafka"}', {})], 200, "application/json", accepted(1)),
    Case("Event Hubs, one", post(b'{"a":1}', path="messages", topic="hub"), [("hub", b'{"a":1}', {})], 201, "", b""),
    Case("Event Hubs, a batch", post(
            b'[{"Body":"{\\"a\\":1}","UserProperties":{"Alert":"x","n":1},"BrokerProperties":{"PartitionKey":"k"}},{"Body":{"b":2}}]',
            "application/vnd.microsoft.servicebus.json", path="messages", topic="hub"),
         [("hub", b'{"a":1}', {"placeholder_values": {"headers.alert": "x", "headers.n": "1", "key": "k"}}), ("hub", b'{"b":2}', {"batch_index": 1, "placeholder_values": {}})],
         201, "", b""),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_format(case: Case) -> None:
    """Topic, payload bytes as they were sent, type, time, key, places; and the sender's own kind of answer."""
    parsed = parse_post(case.post)
    expected = [Record(topic, payload, **more) for topic, payload, more in case.records]
    expected = [
        record
        if "shared_values" in more
        else Record(topic, payload, **{**more, "shared_values": case.post.shared_values})
        for record, (topic, payload, more) in zip(expected, case.records, strict=True)
    ]
    assert list(parsed.records) == expected
    assert answered(case.post, parsed) == (case.status, case.content_type, case.answer)


def answered(post: Post, parsed: ParsedPost) -> tuple[int, str, bytes]:
    outcomes = [each if isinstance(each, GatewayError) else [ID] for each in parsed.records]
    return tuple(parsed.format.build_response(post, parsed, outcomes))  # type: ignore[return-value]


def test_a_record_of_rest_proxy_that_is_refused_is_told_in_its_place() -> None:
    """The other records are accepted: 50002 is final, 50003 is retriable."""
    one = post(
        b'{"records":[{"value":"aGk="},{"value":"%"},{"value":1},5,{"value":"aGk="}]}',
        "application/vnd.kafka.binary.v2+json", path="topics", topic="t",
    )  # fmt: skip
    parsed = parse_post(one)
    outcomes: list[Any] = [each if isinstance(each, GatewayError) else [ID] for each in parsed.records]
    outcomes[4] = Unavailable("later")
    told = json.loads(parsed.format.build_response(one, parsed, outcomes).body)["offsets"]
    assert [each["error_code"] for each in told] == [None, 50002, 50002, 50002, 50003]
    assert [each["offset"] for each in told] == [OFFSET, None, None, None, None]
    assert told[1]["error"] == "the value is not base64"


@pytest.mark.parametrize(
    ("posted", "status", "code"),
    [
        (post(b'{"records":[]}', "application/vnd.kafka.json.v2+json", topic="t"), 422, "bad_records"),
        (post(b"[]", "application/vnd.kafka.json.v2+json", topic="t"), 422, "bad_records"),
        (post(b"{", "application/vnd.kafka.json.v2+json", topic="t"), 422, "bad_json"),
        (post(b'{"records":[{"value":1}],"records":[]}', "application/vnd.kafka.json.v2+json", topic="t"), 422, "bad_json"),
        (post(b'{"records":[{"value":1}]}', "application/vnd.kafka.avro.v2+json", topic="t"), 415, "unknown_content_type"),
        (post(b'{"entries":[]}', path="records:batch", topic="t"), 422, "bad_records"),
        (post(b"{}", "application/cloudevents+json"), 422, "bad_cloudevent"),
        (post(b"<a/>", "application/cloudevents+xml"), 415, "unknown_content_type"),
        (post(STRUCTURED.replace(b"1.0", b"0.3"), "application/cloudevents+json"), 422, "bad_cloudevent"),
        (post(STRUCTURED.replace(b'"n":5', b'"n":[]'), "application/cloudevents+json"), 422, "bad_cloudevent"),
        (post(STRUCTURED.replace(b'"n":5', b'"time":"now"'), "application/cloudevents+json"), 422, "bad_cloudevent"),
        (post(STRUCTURED.replace(b'"n":5', b'"data_base64":""'), "application/cloudevents+json"), 422, "bad_cloudevent"),
        (post(b"", headers={**CE, "ce-specversion": "2.0"}), 422, "bad_cloudevent"),
        (post(b"1"), 400, "no_topic"),
        (post(b"[]", "application/vnd.microsoft.servicebus.json", topic="t"), 400, "empty_body"),
        (post(b'[{"x":1}]', "application/vnd.microsoft.servicebus.json", topic="t"), 422, "bad_records"),
        (post(json.dumps([{**AWS, "value": "%"}]).encode()), 422, "bad_records"),
    ],
)  # fmt: skip
def test_what_can_never_be_taken(posted: Post, status: int, code: str) -> None:
    """A 4xx with a code, before anything of it is appended."""
    with pytest.raises(GatewayError) as caught:
        parse_post(posted)
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        ("single", [b"[1,2]", b"x"], [b""]),
        ("array", [b"[1]"], [b"{}", b"[1", b"x"]),
        ("lines", [b"1\nx"], [b""]),
        ("cloudevents", [], [b"{}"]),
        ("rest-proxy", [], [b'{"records":[{"value":1}]}']),
        ("kafka-records", [json.dumps([AWS]).encode()], [b"[1]", b"x", b"{}"]),
        ("event-hubs", [b"x"], [b""]),
    ],
)
def test_a_source_may_take_one_format_only(format: Any, good: list[bytes], bad: list[bytes]) -> None:
    """A file that says so is not guessed about."""
    for body in good:
        assert len(parse_post(post(body, topic="t"), format).records) == 1 + body.count(b"\n")
    for body in bad:
        with pytest.raises((BadRequest, RecordRejected)):
            parse_post(post(body, topic="t"), format)


def test_a_topic_is_bounded_wherever_it_comes_from() -> None:
    """A sender that invents topics of megabytes must not fill the memory."""
    for one in (
        post(b"1", headers={**CE, "ce-type": "x" * 300}),
        post(json.dumps([{**AWS, "topic": "x" * 300}]).encode()),
    ):
        with pytest.raises(RecordRejected) as caught:
            parse_post(one)
        assert caught.value.code == "bad_topic"


def test_what_only_one_decoder_takes_is_no_500() -> None:
    """A lone surrogate in a key, a time beyond the calendar, a record without a topic among others."""
    for path, key in (("topics", "records"), ("records:batch", "entries")):
        with pytest.raises(RecordRejected):
            parse_post(
                post(
                    f'{{"\\ud800":1,"{key}":[{{"value":1}}]}}'.encode(),
                    "application/json",
                    path=path,
                    topic="t",
                )
            )
    far = rest_proxy.parse_record_v3(post(b"", topic="t"), b'{"timestamp":"9999-12-31T23:59:59-23:59"}')
    assert isinstance(far, RecordRejected)
    named = post(b'{"records":[{"key":"a","value":1},{"value":2}]}', "application/vnd.kafka.json.v2+json",
                 default_topic=Expression("{key}"))  # fmt: skip
    assert [isinstance(each, GatewayError) for each in parse_post(named).records] == [False, True]


def test_the_topic_of_a_record() -> None:
    """The URL's, then the format's, then the source's; for CloudEvents the type, if nobody says one."""
    aws = json.dumps([AWS]).encode()
    fixed, named = Expression("fixed"), Expression("ce.{ce.source}")
    topics = [
        parse_post(posted).records[0].topic  # type: ignore[union-attr]
        for posted in (
            post(aws, topic="url", default_topic=fixed), post(aws, default_topic=fixed), post(b"1", default_topic=fixed),
            post(b"1", headers=CE, default_topic=named), post(b"1", headers=CE),
        )
    ]  # fmt: skip
    assert topics == ["url", "orders", "fixed", "ce./shop", "order.created"]


@pytest.mark.parametrize(
    ("path", "content_type", "status", "body"),
    [
        ("plain", "", None, None),
        ("topics", "", 404, b'{"error_code":40401,"message":"m"}'),
        ("plain", "application/vnd.kafka.json.v2+json", 404, b'{"error_code":40401,"message":"m"}'),
        ("records", "", 404, b'{"error_code":404,"message":"m"}'),
    ],
)
def test_refusals_in_the_words_of_the_rest_proxy(
    path: str, content_type: str, status: int, body: bytes
) -> None:
    """Its clients parse error_code."""
    reply = rest_proxy.build_error_response(
        path, content_type, RecordRejected("m", code="no_route", status=404)
    )
    assert reply == (None if status is None else (status, reply.content_type if reply else "", body))


# Whatever comes in: a record or a 4xx, nothing else escapes.

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "records",
                    "entries",
                    "value",
                    "key",
                    "type",
                    "data",
                    "headers",
                    "id",
                    "source",
                    "specversion",
                    "data_base64",
                    "time",
                    "Body",
                    "topic",
                    "partition",
                    "offset",
                    "eventSource",
                    "timestamp",
                    "name",
                    "partition_id",
                    "UserProperties",
                    "BrokerProperties",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)
TYPES = st.sampled_from(["", "application/json", "application/vnd.kafka.json.v2+json", "application/vnd.kafka.binary.v1+json",
                         "application/vnd.kafka.text+json", "application/cloudevents+json", "application/cloudevents-batch+json",
                         "application/x-ndjson", "application/vnd.microsoft.servicebus.json", "text/plain"])  # fmt: skip
PATHS = st.sampled_from(["plain", "topics", "records", "records:batch", "messages"])
HEADERS = st.dictionaries(
    st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-specversion", "ce-time", "ce-key", "ce-kafkaheaderx", "ce-x"]),
    st.text(max_size=12) | st.text(st.characters(categories=["Cs", "Lu"]), max_size=5) | st.sampled_from(["1.0", "dev.knative.kafka.event", "partition:1/offset:2", "%ff", "\udcff"]),
)  # fmt: skip
BODIES = st.binary(max_size=60) | JSONS.map(lambda value: json.dumps(value).encode()) | JSONS.map(
    lambda value: b'{"eventSource":"aws:kafka","records":' + json.dumps(value).encode() + b"}"
)  # fmt: skip


@given(BODIES, TYPES, PATHS, HEADERS, st.none() | st.text(max_size=5))
def test_no_request_escapes(
    body: bytes, content_type: str, path: Any, headers: Mapping[str, str], topic: str | None
) -> None:
    """No exception but a 4xx, and an answer that can be encoded."""
    one = post(body, content_type, path=path, headers=headers, topic=topic)
    try:
        parsed = parse_post(one)
    except (BadRequest, RecordRejected, PayloadTooLarge) as error:
        assert 400 <= error.status < 500
        return
    for record in parsed.records:
        if isinstance(record, Record):
            assert isinstance(record.payload, bytes)
            assert record.topic
    assert 200 <= answered(one, parsed)[0] < 300


@given(JSONS)
def test_no_record_of_v3_escapes(value: Any) -> None:
    """Each is a record or says what is wrong."""
    text = json.dumps(value).encode()
    record = rest_proxy.parse_record_v3(post(b"", topic="t"), text)
    told = rest_proxy.build_receipt(
        post(b"", topic="t"), record, record if isinstance(record, GatewayError) else [ID]
    )
    json.dumps(told)
