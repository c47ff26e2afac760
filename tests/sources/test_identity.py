"""Distinct bytes stay distinct in keys, topics, types and payloads, whatever their encoding."""

import base64
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.config.model.sources import EventMappingConfig, KafkaConfig, RedisStreamConfig
from gateway.core.errors import RecordRejected
from gateway.core.event import Record
from gateway.sources.kafka import KafkaSource
from gateway.sources.redis.stream import RedisStreamSource
from gateway.sources.redis.stream_servers import key_of_partition, partition_of_key
from gateway.sources.router import Router
from gateway.webhooks.formats import cloud_batches as clouds
from gateway.webhooks.formats import cloudevents, rest_proxy
from gateway.webhooks.formats.base import Post

JAVA = b"\xac\xed\x00\x05t\x00\x02id"
"""How Java's own serialization, the default of Spring and Redisson, writes "id"."""

CATALOG = ChannelCatalog(
    {"all": ChannelConfig.model_validate({"from": [{"source": "s", "topic": "*"}], "access": "public"})}
)

KAFKA = KafkaSource(
    "s",
    KafkaConfig.model_validate({"type": "kafka", "brokers": "localhost:9092"}),
    [],
    frozenset({"key", "headers.id"}),
)
STREAM = RedisStreamSource(
    RedisStreamConfig.model_validate({"type": "redis-stream", "url": "redis://localhost"}),
    [],
    frozenset({"fields.id"}),
)


def key_in(record: Record, placeholder: str) -> str | None:
    """Return the deduplication key of a record by one placeholder."""
    router = Router(
        CATALOG,
        event_bytes=10_000,
        events={"s": EventMappingConfig.model_validate({"deduplicate": placeholder})},
    )
    (draft,) = router.route("s", record, now=1)
    return draft.deduplication_key


def kafka(key: bytes, headers: Sequence[tuple[str, bytes]]) -> Record:
    message = SimpleNamespace(
        topic="t", partition=0, offset=1, timestamp=1, key=key, value=b"1", headers=headers
    )
    return KAFKA.decode_message(message)


def base(data: bytes) -> str:
    return base64.b64encode(data).decode()


def only(parsed: Any) -> Record:
    (record,) = parsed.records
    assert isinstance(record, Record), record
    return record


def aws(key: bytes, header: bytes) -> Record:
    body = {
        "eventSource": "aws:kafka",
        "records": {
            "t-0": [
                {
                    "topic": "t",
                    "partition": 0,
                    "offset": 1,
                    "key": base(key),
                    "value": base(b"1"),
                    "headers": [{"id": [byte - 256 if byte > 127 else byte for byte in header]}],
                }
            ]
        },
    }
    parsed = clouds.parse_kafka_records(Post(json.dumps(body).encode(), "application/json"))
    assert parsed is not None
    return only(parsed)


def proxy_v3(key: bytes, header: bytes) -> Record:
    body = {
        "key": {"type": "BINARY", "data": base(key)},
        "value": {"type": "JSON", "data": 1},
        "headers": [{"name": "id", "value": base(header)}],
    }
    record = rest_proxy.parse_record_v3(Post(b"", topic="t"), json.dumps(body).encode())
    assert isinstance(record, Record), record
    return record


def proxy_v2(key: bytes) -> Record:
    body = json.dumps({"records": [{"key": base(key), "value": base(b"1")}]}).encode()
    post = Post(body, "application/vnd.kafka.binary.v2+json", path="topics", topic="t")
    return only(rest_proxy.parse(post))


def cloud_event(id: bytes) -> Record:
    """Return a CloudEvent whose id arrived as these bytes in an HTTP header (PEP 383)."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": id.decode(errors="surrogateescape"),
        "ce-source": "/a",
        "ce-type": "t",
    }
    return only(cloudevents.parse(Post(b"1", headers=headers)))


def entry(**fields: bytes) -> Record:
    flat = [part for name, value in fields.items() for part in (name.encode(), value)]
    return STREAM.decode_entry("t", b"1-0", flat)


KEYS: dict[str, Callable[[bytes], str | None]] = {
    "Kafka, the key": lambda data: key_in(kafka(data, []), "{key}"),
    "Kafka, a header": lambda data: key_in(kafka(b"", [("id", data)]), "{headers.id}"),
    "Redis, a field": lambda data: key_in(entry(payload=b"1", id=data), "{fields.id}"),
    "Redis, a topic": lambda data: key_in(STREAM.decode_entry(
        data.decode(errors="surrogateescape"), b"1-0", [b"payload", b"1"]), "{topic}"),
    "AWS, the key": lambda data: key_in(aws(data, b""), "{key}"),
    "AWS, a header": lambda data: key_in(aws(b"", data), "{headers.id}"),
    "REST Proxy v3, the key": lambda data: key_in(proxy_v3(data, b""), "{key}"),
    "REST Proxy v3, a header": lambda data: key_in(proxy_v3(b"", data), "{headers.id}"),
    "REST Proxy v2, the key": lambda data: key_in(proxy_v2(data), "{key}"),
    "a literal around it": lambda data: key_in(kafka(data, []), "<{key}>"),
    "two placeholders": lambda data: key_in(kafka(data, [("id", data)]), "{key}{headers.id}"),
}  # fmt: skip


@pytest.mark.parametrize("sender", KEYS)
@given(st.binary(max_size=12), st.binary(max_size=12))
def test_different_bytes_are_different_keys(sender: str, one: bytes, other: bytes) -> None:
    """Records with different binary keys (LongSerializer) would be dropped as duplicates."""
    key = KEYS[sender]
    assert (key(one) == key(other)) == (one == other)
    assert key(one) is not None
    key(one).encode()  # type: ignore[union-attr]  # the log can store it


@given(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=12))
def test_different_ids_of_cloudevents_are_different_keys(one: bytes, other: bytes) -> None:
    """Different ids would be one event; only percent-encoding makes two equal (HTTP binding §3.1.3.2)."""
    if b"%" in one + other:
        return
    keys = [key_in(cloud_event(id), "{ce.id}") for id in (one, other)]
    own = [cloud_event(id).deduplication_key for id in (one, other)]
    assert (keys[0] == keys[1]) == (own[0] == own[1]) == (one == other)


@given(*[st.text(max_size=4) for _ in range(4)])
def test_two_placeholders_are_not_run_together(a: str, b: str, c: str, d: str) -> None:
    """`x-y` with `z`, and `x` with `y-z`, would be one key and drop an event."""
    keys = [
        key_in(kafka(one.encode(), [("id", two.encode())]), "{key}-{headers.id}")
        for one, two in ((a, b), (c, d))
    ]
    assert (keys[0] == keys[1]) == ((a, b) == (c, d))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=6), st.binary(max_size=6)), min_size=1, max_size=4))
def test_an_entry_without_a_payload_is_shown_whole_or_refused(fields: list[tuple[bytes, bytes]]) -> None:
    """A Redis entry without a payload would lose fields, or show bytes that it does not contain."""
    flat = [part for pair in fields for part in pair]
    if any(name == b"payload" for name, _ in fields):
        return
    try:
        texts = [(name.decode(), value.decode()) for name, value in fields]
    except UnicodeDecodeError:
        with pytest.raises(RecordRejected) as caught:
            STREAM.decode_entry("t", b"1-0", flat)
        assert caught.value.code == "not_utf8"
        return
    shown = json.loads(STREAM.decode_entry("t", b"1-0", flat).payload)
    pairs = [
        (name, value)
        for name, values in shown.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    assert sorted(pairs) == sorted(texts)


def test_a_foreign_serializer_is_named_with_its_remedy() -> None:
    """An operator with Spring's or Redisson's default serializer would not learn what to change."""
    for flat in ([JAVA, b"1"], [b"id", JAVA], [b"payload", JAVA]):
        with pytest.raises(RecordRejected, match=r"StringRedisTemplate.*StringCodec") as caught:
            key_in(STREAM.decode_entry("t", b"1-0", flat), "{id}")
        assert caught.value.code == "not_utf8"
        if flat[0] != b"payload":
            assert "field b'" in caught.value.message


@given(st.binary(max_size=8))
def test_a_type_is_what_was_sent_or_refused(data: bytes) -> None:
    """A type that is not UTF-8 would be shown as another one."""
    record = entry(payload=b"1", type=data)
    router = Router(CATALOG, event_bytes=1000)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(RecordRejected) as caught:
            router.route("s", record, now=1)
        assert caught.value.code == "not_utf8"
        return
    try:
        (draft,) = router.route("s", record, now=1)
    except RecordRejected as error:
        assert error.code == "bad_type"
    else:
        assert draft.type in (text or None, "message")


@given(st.binary(max_size=8), st.sampled_from([b"", b"hex:", b"hex:ff"]))
def test_a_stream_has_a_position_of_its_own(key: bytes, before: bytes) -> None:
    """Two streams with similar keys would share one offset."""
    part = partition_of_key(before + key)
    part.encode()  # the log can store it
    assert key_of_partition(part) == before + key


def test_of_several_headers_with_one_name_the_first_counts() -> None:
    """A repeated header would change a record's key, unlike in a webhook."""
    assert kafka(b"", [("Id", b"1"), ("id", b"2")]).placeholder_values["headers.id"] == "1"
