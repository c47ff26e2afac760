"""CloudEvents 1.0 over HTTP: binary, structured and batched. Pure.

https://github.com/cloudevents/spec: HTTP binding 1.0.2, JSON format 1.0.2, webhooks 1.0 (the handshake).
Knative's KafkaSource sends binary mode, with topic, partition, offset and key in the attributes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

import msgspec

from gateway.core.errors import RecordRejected
from gateway.core.event import Record, parse_iso8601_ms
from gateway.webhooks.decoding import decode_base64
from gateway.webhooks.formats.base import (
    Outcome,
    ParsedPost,
    Post,
    WebhookFormat,
    WebhookResponse,
    unsupported_type_error,
)
from gateway.webhooks.strict_json import array_elements, check_strict_json

STRUCTURED_TYPE = "application/cloudevents"
BATCH_TYPE = "application/cloudevents-batch"
REQUIRED_HEADERS = ("ce-specversion", "ce-id", "ce-source", "ce-type")

_JSON_TYPE = re.compile(r"[\w.\-]+/(?:json|[\w.\-]+\+json)(?:\s*;.*)?", re.ASCII)
_KNATIVE_ID = re.compile(r"partition:([0-9]{1,9})/offset:([0-9]{1,18})", re.ASCII)
_UNDECODED_BYTES = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as the HTTP server passes them on (PEP 383)."""

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string_decoder = msgspec.json.Decoder(str)
_scalar_decoder = msgspec.json.Decoder(str | int | bool | None)


class CloudEventsFormat(WebhookFormat):
    """Responds 204: Knative takes a body for a reply event, and fails."""

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        return WebhookResponse(204)


CLOUDEVENTS = CloudEventsFormat()


def matches(post: Post) -> bool:
    """Return whether a post is in one of the three modes; four headers make binary mode, for any type."""
    return post.content_type.startswith(STRUCTURED_TYPE) or _is_binary(post)


def _is_binary(post: Post) -> bool:
    return all(name in post.headers for name in REQUIRED_HEADERS)


def parse(post: Post) -> ParsedPost:
    """Return the events of a post. Raises RecordRejected or PayloadTooLarge."""
    if not post.content_type.startswith(STRUCTURED_TYPE):
        if not _is_binary(post):
            raise _invalid_event_error(f"binary mode needs the headers {', '.join(REQUIRED_HEADERS)}")
        return ParsedPost(CLOUDEVENTS, [_parse_binary(post)])
    suffix = post.content_type.removeprefix(BATCH_TYPE).removeprefix(STRUCTURED_TYPE)
    if suffix not in ("", "+json"):
        raise unsupported_type_error("write events as +json, or in binary mode")
    return ParsedPost(CLOUDEVENTS, list(_parse_structured(post)))


def _parse_binary(post: Post) -> Record:
    attributes = {
        name[3:]: unquote(text, errors="surrogateescape")
        for name, text in post.headers.items()
        if name.startswith("ce-")
    }
    # An event without data has no body.
    return _build_record(post, attributes, post.body or b"null", 0)


def _bytes_as_latin1(text: str) -> str:
    """Return a text with bytes that are not UTF-8 as Latin-1, which some clients send unencoded."""
    return _UNDECODED_BYTES.sub(lambda match: chr(ord(match[0]) - 0xDC00), text)


def _parse_structured(post: Post) -> Iterator[Record]:
    # Debezium posts arrays under the media type of one event.
    if post.body.lstrip()[:1] == b"[":
        items = array_elements(post.body)
    else:
        check_strict_json(post.body)
        items = [post.body]
    for index, item in enumerate(items):
        try:
            yield _parse_event(post, _object_decoder.decode(item), index)
        except (msgspec.MsgspecError, RecursionError):
            raise _invalid_event_error(
                "an event must be a JSON object whose attributes are text, numbers or booleans"
            ) from None


def _parse_event(post: Post, members: dict[str, msgspec.Raw], index: int) -> Record:
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    attributes = {}
    for name, raw in members.items():
        value = _scalar_decoder.decode(raw)
        if value is not None:
            attributes[name] = value if isinstance(value, str) else bytes(raw).decode()
    if data is not None and encoded is not None:
        raise _invalid_event_error("data and data_base64 exclude each other")
    payload = b"null"
    if encoded is not None:
        text = _string_decoder.decode(encoded)
        try:
            payload = decode_base64(text)
        except ValueError:
            raise _invalid_event_error("data_base64 is not base64") from None
    elif data is not None:
        payload = bytes(data)
        kind = attributes.get("datacontenttype", "application/json")
        if payload[:1] == b'"' and not _JSON_TYPE.fullmatch(kind):
            payload = _string_decoder.decode(payload).encode()
    return _build_record(post, attributes, payload, index)


def _build_record(post: Post, attributes: Mapping[str, str], payload: bytes, index: int) -> Record:
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise _invalid_event_error(f"the attribute {name} is missing")
    if not attributes["specversion"].startswith("1."):
        raise _invalid_event_error("only specversion 1.0 is supported")
    values = {f"ce.{name}": text for name, text in attributes.items()}
    topic = None
    if attributes["type"] == "dev.knative.kafka.event":
        topic = attributes["source"].rpartition("#")[2]
        position = _KNATIVE_ID.fullmatch(attributes["id"])
        if position:
            values["partition"], values["offset"] = position.groups()
        for name, text in attributes.items():
            if name.startswith("kafkaheader"):
                values[f"headers.{name[11:]}"] = text
    if "key" in attributes:
        values["key"] = attributes["key"]
    return post.build_record(
        payload,
        index,
        topic=topic,
        deduplication_key=f"{attributes['source']} {attributes['id']}",  # a source holds no space
        type=_bytes_as_latin1(attributes["type"]),
        timestamp_ms=_parse_timestamp(attributes.get("time")),
        placeholder_values=values,
        fallback_topic=_bytes_as_latin1(attributes["type"]),
    )


def _parse_timestamp(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_iso8601_ms(text)
    except ValueError:
        raise _invalid_event_error("the attribute time is not RFC 3339") from None


def _invalid_event_error(message: str) -> RecordRejected:
    return RecordRejected(f"CloudEvents: {message}", code="bad_cloudevent")
