"""CloudEvents 1.0 over HTTP: binary, structured and batched. Pure.

https://github.com/cloudevents/spec: HTTP binding 1.0.2, JSON format 1.0.2, webhooks 1.0 (the handshake).
Knative's KafkaSource speaks binary mode and names topic, partition, offset and key in its attributes.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

import msgspec

from gateway.core.errors import Rejected
from gateway.core.event import Record, parse_time
from gateway.webhooks.formats import base as limits
from gateway.webhooks.formats.base import Format, Outcome, Parsed, Post, Reply
from gateway.webhooks.strict_json import elements, skeleton

STRUCTURED = "application/cloudevents"
BATCH = "application/cloudevents-batch"
REQUIRED = ("ce-specversion", "ce-id", "ce-source", "ce-type")

_JSON = re.compile(r"[\w.\-]+/(?:json|[\w.\-]+\+json)(?:\s*;.*)?", re.ASCII)
_KNATIVE = re.compile(r"partition:([0-9]{1,9})/offset:([0-9]{1,18})", re.ASCII)
_BYTES = re.compile("[\udc80-\udcff]")
"""Bytes that are no UTF-8, as the HTTP server hands them on (PEP 383)."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_scalar = msgspec.json.Decoder(str | int | bool | None)


class CloudEvents(Format):
    """Answers without a body: Knative takes one for an event of its own, and fails."""

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return 204."""
        return Reply(204)


CLOUDEVENTS = CloudEvents()


def is_spoken(post: Post) -> bool:
    """Tell whether a post is in one of the three modes; four headers make binary mode, whatever the type."""
    return post.content_type.startswith(STRUCTURED) or all(name in post.headers for name in REQUIRED)


def read(post: Post) -> Parsed:
    """Return the events of a post. Raises Rejected or PayloadTooLarge."""
    if not post.content_type.startswith(STRUCTURED):
        if not all(name in post.headers for name in REQUIRED):
            raise _bad(f"binary mode needs the headers {', '.join(REQUIRED)}")
        return Parsed(CLOUDEVENTS, [_binary(post)])
    suffix = post.content_type.removeprefix(BATCH).removeprefix(STRUCTURED)
    if suffix not in ("", "+json"):
        raise limits.unknown_type("write events as +json, or in binary mode")
    return Parsed(CLOUDEVENTS, list(_structured(post)))


def _binary(post: Post) -> Record:
    attributes = {
        name[3:]: unquote(text, errors="surrogateescape")
        for name, text in post.headers.items()
        if name.startswith("ce-")
    }
    # No body is an event without data.
    return _record(post, attributes, post.body or b"null", 0)


def _shown(text: str) -> str:
    """Return a text that is shown: bytes that are no UTF-8 are Latin-1, as some clients send it unencoded."""
    return _BYTES.sub(lambda match: chr(ord(match[0]) - 0xDC00), text)


def _structured(post: Post) -> Iterator[Record]:
    # Debezium posts arrays under the media type of one event.
    if post.body.lstrip()[:1] == b"[":
        items = elements(post.body)
    else:
        skeleton(post.body)
        items = [post.body]
    for index, item in enumerate(items):
        try:
            yield _event(post, _object.decode(item), index)
        except (msgspec.MsgspecError, RecursionError):
            raise _bad(
                "an event must be a JSON object whose attributes are text, numbers or booleans"
            ) from None


def _event(post: Post, members: dict[str, msgspec.Raw], index: int) -> Record:
    data, encoded = members.pop("data", None), members.pop("data_base64", None)
    attributes = {}
    for name, raw in members.items():
        value = _scalar.decode(raw)
        if value is not None:
            attributes[name] = value if isinstance(value, str) else bytes(raw).decode()
    if data is not None and encoded is not None:
        raise _bad("data and data_base64 exclude each other")
    payload = b"null"
    if encoded is not None:
        try:
            payload = base64.b64decode(_string.decode(encoded), validate=True)
        except (binascii.Error, ValueError):
            raise _bad("data_base64 is not base64") from None
    elif data is not None:
        payload = bytes(data)
        kind = attributes.get("datacontenttype", "application/json")
        if payload[:1] == b'"' and not _JSON.fullmatch(kind):
            payload = _string.decode(payload).encode()
    return _record(post, attributes, payload, index)


def _record(post: Post, attributes: Mapping[str, str], payload: bytes, index: int) -> Record:
    for name in ("specversion", "id", "source", "type"):
        if not attributes.get(name):
            raise _bad(f"the attribute {name} is missing")
    if not attributes["specversion"].startswith("1."):
        raise _bad("only specversion 1.0 is understood")
    values = {f"ce.{name}": text for name, text in attributes.items()}
    topic = None
    if attributes["type"] == "dev.knative.kafka.event":
        topic = attributes["source"].rpartition("#")[2]
        place = _KNATIVE.fullmatch(attributes["id"])
        if place:
            values["partition"], values["offset"] = place.groups()
        for name, text in attributes.items():
            if name.startswith("kafkaheader"):
                values[f"headers.{name[11:]}"] = text
    if "key" in attributes:
        values["key"] = attributes["key"]
    return post.record(
        payload,
        index,
        topic=topic,
        key=f"{attributes['source']} {attributes['id']}",  # a source holds no space
        type=_shown(attributes["type"]),
        timestamp=_time(attributes.get("time")),
        values=values,
        fallback=_shown(attributes["type"]),
    )


def _time(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_time(text)
    except ValueError:
        raise _bad("the attribute time is not RFC 3339") from None


def _bad(message: str) -> Rejected:
    return Rejected(f"CloudEvents: {message}", code="bad_cloudevent")
