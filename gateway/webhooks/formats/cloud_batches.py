"""Kafka records as AWS forwards them (MSK and EventBridge Pipes), and batches of Azure Event Hubs. Pure.

https://docs.aws.amazon.com/lambda/latest/dg/with-msk.html, …/eventbridge/latest/userguide/eb-pipes-
kafka.html, https://learn.microsoft.com/en-us/rest/api/eventhub/send-batch-events.
"""

from collections.abc import Sequence

import msgspec

from gateway.config.placeholders import decode_json_scalar
from gateway.core.errors import RecordRejected
from gateway.core.event import Record, decode_lossless
from gateway.webhooks.decoding import decode_base64_field
from gateway.webhooks.formats.base import (
    Outcome,
    ParsedPost,
    Post,
    WebhookFormat,
    WebhookResponse,
    empty_body_error,
)
from gateway.webhooks.formats.plain import PLAIN
from gateway.webhooks.strict_json import check_element_count, check_strict_json, is_json

EVENT_HUBS_BATCH_TYPE = "application/vnd.microsoft.servicebus.json"
_AWS_EVENT_SOURCES = (b'"aws:kafka"', b'"SelfManagedKafka"')


class _KafkaRecord(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    timestamp: int | None = None
    key: str | None = None
    value: str | None = None
    headers: list[dict[str, list[int]]] = []
    eventSourceArn: str = ""
    bootstrapServers: str = ""


class _LambdaInvocation(msgspec.Struct):
    records: dict[str, list[_KafkaRecord]]
    eventSourceArn: str = ""
    bootstrapServers: str = ""


class _RawInvocation(msgspec.Struct):
    records: msgspec.Raw


class _EventHubsMessage(msgspec.Struct):
    Body: msgspec.Raw
    UserProperties: dict[str, msgspec.Raw] = {}
    BrokerProperties: dict[str, msgspec.Raw] = {}


_pipes_decoder = msgspec.json.Decoder(list[_KafkaRecord])
_invocation_decoder = msgspec.json.Decoder(_LambdaInvocation)
_raw_invocation_decoder = msgspec.json.Decoder(_RawInvocation)
_messages_decoder = msgspec.json.Decoder(list[_EventHubsMessage])
_string_decoder = msgspec.json.Decoder(str)


class EventHubsFormat(WebhookFormat):
    """Responds 201 without a body, as Event Hubs does."""

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        return WebhookResponse(201)


EVENT_HUBS = EventHubsFormat()


def may_hold_kafka_records(post: Post) -> bool:
    """Return whether a post may hold Kafka records of AWS; `parse_kafka_records` decides."""
    return any(word in post.body for word in _AWS_EVENT_SOURCES)


def parse_kafka_records(post: Post) -> ParsedPost | None:
    """Return the records of a Pipes array or an MSK invocation; None if it is neither.

    Raises RecordRejected or PayloadTooLarge.
    """
    try:
        if post.body.lstrip()[:1] == b"[":
            _check_record_count(post.body, depth=1)
            cluster, found = "", _pipes_decoder.decode(post.body)
        else:
            _check_record_count(bytes(_raw_invocation_decoder.decode(post.body).records), depth=2)
            whole = _invocation_decoder.decode(post.body)
            cluster = whole.eventSourceArn or whole.bootstrapServers
            found = [record for part in whole.records.values() for record in part]
    except (msgspec.MsgspecError, RecursionError):
        return None
    check_strict_json(post.body)
    if not found:
        raise empty_body_error()
    return ParsedPost(
        PLAIN, [_build_kafka_record(post, record, cluster, index) for index, record in enumerate(found)]
    )


def _build_kafka_record(post: Post, record: _KafkaRecord, cluster: str, index: int) -> Record:
    values = {"partition": str(record.partition), "offset": str(record.offset)}
    if record.key is not None:
        values["key"] = decode_lossless(decode_base64_field(record.key, "record's key"))
    for header in record.headers:
        for name, numbers in header.items():
            if not all(-128 <= number <= 255 for number in numbers):
                raise RecordRejected("a header's value is not a list of bytes", code="bad_records")
            # Java's bytes are signed. Of repeated names the first counts.
            text = decode_lossless(bytes(number % 256 for number in numbers))
            values.setdefault(f"headers.{name.lower()}", text)
    cluster = record.eventSourceArn or record.bootstrapServers or cluster
    return post.build_record(
        b"null" if record.value is None else decode_base64_field(record.value, "record's value"),
        index,
        topic=record.topic,
        deduplication_key=f"{cluster}/{record.topic}/{record.partition}/{record.offset}",
        timestamp_ms=record.timestamp,
        placeholder_values=values,
    )


def parse_event_hubs(post: Post) -> ParsedPost:
    """Return the messages of an Event Hubs request: a batch by its content type, or else a single one.

    Raises BadRequest, RecordRejected or PayloadTooLarge.
    """
    if post.content_type != EVENT_HUBS_BATCH_TYPE:
        if not post.body:
            raise empty_body_error()
        return ParsedPost(EVENT_HUBS, [post.build_record(post.body)])
    if post.body.lstrip()[:1] == b"[":
        _check_record_count(post.body, depth=1)
    check_strict_json(post.body)
    try:
        found = _messages_decoder.decode(post.body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordRejected(f'the body must be [{{"Body": …}}, …]: {error}', code="bad_records") from None
    if not found:
        raise empty_body_error()
    return ParsedPost(
        EVENT_HUBS, [_build_event_hubs_record(post, message, index) for index, message in enumerate(found)]
    )


def _check_record_count(body: bytes, *, depth: int) -> None:
    """Raise PayloadTooLarge for too many records, before they are built."""
    if is_json(body):
        check_element_count(body, depth)


def _build_event_hubs_record(post: Post, message: _EventHubsMessage, index: int) -> Record:
    body = bytes(message.Body)
    values = {
        f"headers.{name.lower()}": text
        for name, raw in reversed(message.UserProperties.items())
        if (text := decode_json_scalar(raw)) is not None
    }
    key = decode_json_scalar(message.BrokerProperties.get("PartitionKey", b"null"))
    if key is not None:
        values["key"] = key
    # A string is the message's content; any other value is JSON.
    payload = _string_decoder.decode(body).encode() if body[:1] == b'"' else body
    return post.build_record(payload, index, placeholder_values=values)
