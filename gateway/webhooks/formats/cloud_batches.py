"""Kafka records as AWS hands them on (MSK and EventBridge Pipes), and batches of Azure Event Hubs. Pure.

https://docs.aws.amazon.com/lambda/latest/dg/with-msk.html, …/eventbridge/latest/userguide/eb-pipes-
kafka.html, https://learn.microsoft.com/en-us/rest/api/eventhub/send-batch-events.
"""

import base64
import binascii
from collections.abc import Sequence

import msgspec

from gateway.config.placeholders import scalar
from gateway.core.errors import Rejected
from gateway.core.event import Record, text_of
from gateway.webhooks.formats import base as limits
from gateway.webhooks.formats.base import Format, Outcome, Parsed, Post, Reply, empty, too_many
from gateway.webhooks.formats.plain import PLAIN
from gateway.webhooks.strict_json import has_more, is_json, skeleton

EVENT_HUBS_BATCH = "application/vnd.microsoft.servicebus.json"
_SOURCES = (b'"aws:kafka"', b'"SelfManagedKafka"')


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


class _Invocation(msgspec.Struct):
    records: dict[str, list[_KafkaRecord]]
    eventSourceArn: str = ""
    bootstrapServers: str = ""


class _Outline(msgspec.Struct):
    records: msgspec.Raw


class _Message(msgspec.Struct):
    Body: msgspec.Raw
    UserProperties: dict[str, msgspec.Raw] = {}
    BrokerProperties: dict[str, msgspec.Raw] = {}


_pipes = msgspec.json.Decoder(list[_KafkaRecord])
_invocation = msgspec.json.Decoder(_Invocation)
_outline = msgspec.json.Decoder(_Outline)
_messages = msgspec.json.Decoder(list[_Message])
_string = msgspec.json.Decoder(str)


class EventHubs(Format):
    """Answers 201, as Event Hubs does."""

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return 201 without a body."""
        return Reply(201)


EVENT_HUBS = EventHubs()


def is_kafka(post: Post) -> bool:
    """Tell whether a post may hold AWS's Kafka records; `read_kafka` decides."""
    return any(word in post.body for word in _SOURCES)


def read_kafka(post: Post) -> Parsed | None:
    """Return the records of an array of Pipes or an invocation of MSK; None where it is neither.

    Raises Rejected or PayloadTooLarge.
    """
    try:
        if post.body.lstrip()[:1] == b"[":
            _count(post.body, depth=1)
            cluster, found = "", _pipes.decode(post.body)
        else:
            _count(bytes(_outline.decode(post.body).records), depth=2)
            whole = _invocation.decode(post.body)
            cluster = whole.eventSourceArn or whole.bootstrapServers
            found = [record for part in whole.records.values() for record in part]
    except (msgspec.MsgspecError, RecursionError):
        return None
    skeleton(post.body)
    if not found:
        raise empty()
    return Parsed(PLAIN, [_kafka(post, record, cluster, index) for index, record in enumerate(found)])


def _kafka(post: Post, record: _KafkaRecord, cluster: str, index: int) -> Record:
    values = {"partition": str(record.partition), "offset": str(record.offset)}
    if record.key is not None:
        values["key"] = text_of(_base64(record.key, "key"))
    for header in record.headers:
        for name, numbers in header.items():
            if not all(-128 <= number <= 255 for number in numbers):
                raise Rejected("a header is not written as bytes", code="bad_records")
            # Java's bytes are signed. Of a name that is given twice the first counts.
            text = text_of(bytes(number % 256 for number in numbers))
            values.setdefault(f"headers.{name.lower()}", text)
    cluster = record.eventSourceArn or record.bootstrapServers or cluster
    return post.record(
        b"null" if record.value is None else _base64(record.value, "value"),
        index,
        topic=record.topic,
        key=f"{cluster}/{record.topic}/{record.partition}/{record.offset}",
        timestamp=record.timestamp,
        values=values,
    )


def read_event_hubs(post: Post) -> Parsed:
    """Return the messages of an Event Hubs request: one as it is, or a batch by its content type.

    Raises BadRequest, Rejected or PayloadTooLarge.
    """
    if post.content_type != EVENT_HUBS_BATCH:
        if not post.body:
            raise empty()
        return Parsed(EVENT_HUBS, [post.record(post.body)])
    if post.body.lstrip()[:1] == b"[":
        _count(post.body, depth=1)
    skeleton(post.body)
    try:
        found = _messages.decode(post.body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Rejected(f'the body must be [{{"Body": …}}, …]: {error}', code="bad_records") from None
    if not found:
        raise empty()
    return Parsed(EVENT_HUBS, [_message(post, message, index) for index, message in enumerate(found)])


def _count(body: bytes, *, depth: int) -> None:
    """Refuse a body with too many records before they are built. Raises PayloadTooLarge."""
    if is_json(body) and has_more(body, limits.MAX_RECORDS, depth):
        raise too_many()


def _message(post: Post, message: _Message, index: int) -> Record:
    body = bytes(message.Body)
    values = {
        f"headers.{name.lower()}": text
        for name, raw in reversed(message.UserProperties.items())
        if (text := scalar(raw)) is not None
    }
    key = scalar(message.BrokerProperties.get("PartitionKey", b"null"))
    if key is not None:
        values["key"] = key
    # A text is the message's content; anything else was meant as JSON.
    payload = _string.decode(body).encode() if body[:1] == b'"' else body
    return post.record(payload, index, values=values)


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(f"a record's {what} is not base64", code="bad_records") from None
