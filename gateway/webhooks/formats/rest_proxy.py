"""Confluent's REST Proxy, v1, v2 and v3, as its clients and their relatives speak it. Pure.

Formats: https://docs.confluent.io/platform/current/kafka-rest/api.html; Strimzi's bridge and Karapace
differ in details that are taken as well (``text`` records, ``headers``, ``timestamp``). A record that is
refused has an error in its place and the others are appended. The offset is the event's id as one
number: it grows, and is the same on all nodes.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.core.errors import GatewayError, PayloadTooLarge, Rejected
from gateway.core.event import MAX_TIMESTAMP, Record, bytes_of, pack, parse_time, text_of
from gateway.webhooks.formats.base import Format, Outcome, Parsed, Post, Reply, unknown_type
from gateway.webhooks.strict_json import elements, member

CLUSTER = "sse-gateway"

WRITTEN = 4
"""How many times `Post.record_bytes` a record may be as it is written: with escapes, its key and headers."""

_MEDIA = re.compile(r"application/vnd\.kafka(?:\.(json|binary|text))?(?:\.(v1|v2))?\+json")
_VENDOR = "application/vnd.kafka"
_CODES = {401: 40101, 403: 40301, 404: 40401, 408: 40801, 413: 41301, 422: 42206, 429: 42901, 503: 50301}
_FINAL, _LATER = 50002, 50003
_NULL = msgspec.Raw(b"null")


class _Header(msgspec.Struct):
    value: str | None = None
    name: str = ""
    key: str = ""  # Strimzi's word


class _Record(msgspec.Struct):
    value: msgspec.Raw = _NULL
    key: msgspec.Raw = _NULL
    partition: int | None = None
    timestamp: int | None = None
    headers: list[_Header] = []


class _Typed(msgspec.Struct):
    type: str = ""
    data: msgspec.Raw = _NULL


class _RecordV3(msgspec.Struct):
    value: _Typed | None = None
    key: _Typed | None = None
    partition_id: int | None = None
    timestamp: str | None = None
    headers: list[_Header] = []


class _Entry(_RecordV3):
    id: str = ""


_record = msgspec.json.Decoder(_Record)
_record_v3 = msgspec.json.Decoder(_RecordV3)
_entry = msgspec.json.Decoder(_Entry)
_string = msgspec.json.Decoder(str)


def is_spoken(post: Post) -> bool:
    """Tell whether a post speaks v1 or v2; ``{"records": […]}`` as plain JSON does on its own path only."""
    if post.content_type.startswith(_VENDOR):
        return True
    return (
        post.path == "topics"
        and post.content_type in ("application/json", "")
        and b'"records"' in post.body[:4096]
        and post.body.lstrip()[:1] == b"{"
    )


def read(post: Post) -> Parsed:
    """Return the records of a v1 or v2 request. Raises Rejected or PayloadTooLarge."""
    media = _MEDIA.fullmatch(post.content_type)
    if media is None and post.content_type.startswith(_VENDOR):
        raise unknown_type("embedded formats are json, binary and text, without schemas")
    # Without an embedded format it is base64: what v1's clients post.
    embedded = (media[1] or "binary") if media else "json"
    items = _items(post, "records")
    records = [_attempt(_v2, post, item, embedded, index) for index, item in enumerate(items)]
    return Parsed(V1 if media and media[2] == "v1" else V2, records)


def read_batch(post: Post) -> Parsed:
    """Return the records of a v3 ``records:batch`` request. Raises Rejected or PayloadTooLarge."""
    entries = _items(post, "entries")
    records = [read_v3(post, item, index) for index, item in enumerate(entries)]
    return Parsed(Batch([_id_of(item) for item in entries]), records)


def _items(post: Post, key: str) -> list[bytes]:
    """Return the records of a body, as they were written. Raises Rejected or PayloadTooLarge."""
    found = member(post.body, key)
    if found[:1] != b"[" or not found[1:-1].strip():
        raise Rejected(f'the body must be {{"{key}": [{{"value": …}}, …]}}', code="bad_records")
    return elements(found, _most(post))


def _most(post: Post) -> int | None:
    """Return how many bytes a record may have as it is written; one with more can never become an event."""
    return None if post.record_bytes is None else WRITTEN * post.record_bytes


def read_v3(post: Post, text: bytes, index: int = 0) -> Record | GatewayError:
    """Return one record of v3, or what is wrong with it."""
    return _attempt(_v3, post, text, "", index)


def error_body(path: str, content_type: str, error: GatewayError) -> Reply | None:
    """Return a refusal in the words of the REST Proxy that was asked, or None where none was."""
    # REST Proxy knows no 400 for a body: what it cannot read is 422.
    status = 422 if error.status == 400 else error.status
    if path in ("records", "records:batch"):
        return _json(status, {"error_code": status, "message": safe(error.message)})
    if path != "topics" and not content_type.startswith(_VENDOR):
        return None
    code = _CODES.get(status, status * 100)
    return _json(status, {"error_code": code, "message": safe(error.message)}, V2.media)


def safe(message: str) -> str:
    """Return a message that can be encoded: headers that are not UTF-8 arrive with surrogates."""
    return message.encode(errors="backslashreplace").decode()


def _attempt(read: Any, post: Post, text: bytes, embedded: str, index: int) -> Record | GatewayError:
    most = _most(post)
    if most is not None and len(text) > most:
        return PayloadTooLarge(
            f"record {index} has {len(text)} bytes, and limits.event_bytes allows far less"
        )
    try:
        record: Record = read(post, text, embedded, index)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return Rejected(f"record {index} has the wrong shape: {error}", code="bad_records")
    except GatewayError as error:
        return error
    return record


def _v2(post: Post, text: bytes, embedded: str, index: int) -> Record:
    record = _record.decode(text)
    partition = post.partition if record.partition is None else record.partition
    key = None if record.key == _NULL else text_of(_content(record.key, embedded, "key"))
    return post.record(
        b"null" if record.value == _NULL else _content(record.value, embedded, "value"),
        index,
        timestamp=record.timestamp,
        values=_values(key, partition or 0, record.headers),
    )


def _v3(post: Post, text: bytes, embedded: str, index: int) -> Record:
    record = _record_v3.decode(text)
    key = None
    if record.key is not None and record.key.data != _NULL:
        key = text_of(_typed(record.key, "key"))
    return post.record(
        b"null" if record.value is None or record.value.data == _NULL else _typed(record.value, "value"),
        index,
        timestamp=None if record.timestamp is None else _time(record.timestamp),
        values=_values(key, record.partition_id or 0, record.headers),
    )


def _content(raw: msgspec.Raw, embedded: str, what: str) -> bytes:
    if embedded == "json":
        text = bytes(raw)
        return _string.decode(text).encode() if what == "key" and text[:1] == b'"' else text
    decoded = _string.decode(raw)
    return _base64(decoded, what) if embedded == "binary" else decoded.encode()


def _typed(value: _Typed, what: str) -> bytes:
    if value.type == "JSON":
        return _content(value.data, "json", what)
    if value.type in ("STRING", "BINARY"):
        return _content(value.data, "text" if value.type == "STRING" else "binary", what)
    raise Rejected(f"the {what}'s type must be JSON, STRING or BINARY, without a schema", code="bad_records")


def _values(key: str | None, partition: int, headers: Sequence[_Header]) -> Mapping[str, str]:
    values = {"partition": str(partition)}
    if key is not None:
        values["key"] = key
    for header in headers:
        if header.value is not None:
            name = (header.name or header.key).lower()
            values.setdefault(f"headers.{name}", text_of(_base64(header.value, "header")))
    return values


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected(f"the {what} is not base64", code="bad_records") from None


def _time(text: str) -> int:
    try:
        found = parse_time(text)
    except ValueError:
        raise Rejected("the timestamp is not ISO 8601", code="bad_timestamp") from None
    if not 0 <= found < MAX_TIMESTAMP:
        raise Rejected("the timestamp lies too far away", code="bad_timestamp")
    return found


def _id_of(entry: bytes) -> str:
    try:
        return _entry.decode(entry).id
    except (msgspec.MsgspecError, RecursionError):
        return ""


def _partition(record: Record | GatewayError) -> int:
    return 0 if isinstance(record, GatewayError) else int(record.values["partition"])


class _Offsets(Format):
    """v1 and v2: an offset or an error for each record."""

    atomic = False

    def __init__(self, version: str) -> None:
        self.media = f"application/vnd.kafka.{version}+json"

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return ``{"offsets": […]}``."""
        offsets = [
            _offset(_partition(record), outcome)
            for record, outcome in zip(parsed.records, outcomes, strict=True)
        ]
        return _json(200, {"offsets": offsets, "key_schema_id": None, "value_schema_id": None}, self.media)


def _offset(partition: int, outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, GatewayError):
        code = _LATER if outcome.status >= 500 else _FINAL
        return {"partition": None, "offset": None, "error_code": code, "error": safe(outcome.message)}
    return {"partition": partition, "offset": pack(outcome[-1]), "error_code": None, "error": None}


V2 = _Offsets("v2")
V1 = _Offsets("v1")


class Batch(Format):
    """v3's ``records:batch``."""

    atomic = False

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return successes and failures by the ids that the sender gave."""
        successes: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for id, record, outcome in zip(self._ids, parsed.records, outcomes, strict=True):
            told = receipt(post, record, outcome)
            (failures if isinstance(outcome, GatewayError) else successes).append({"id": id, **told})
        return _json(207, {"successes": successes, "failures": failures})


def receipt(post: Post, record: Record | GatewayError, outcome: Outcome) -> dict[str, Any]:
    """Return what v3 tells of one record."""
    if isinstance(outcome, GatewayError) or isinstance(record, GatewayError):
        error = outcome if isinstance(outcome, GatewayError) else record
        assert isinstance(error, GatewayError)
        return {"error_code": error.status, "message": safe(error.message)}
    id = outcome[-1]
    time = datetime.fromtimestamp((id.ms if record.timestamp is None else record.timestamp) / 1000, UTC)
    told = {
        "error_code": 200,
        "cluster_id": post.cluster or CLUSTER,
        "topic_name": record.topic,
        "partition_id": int(record.values["partition"]),
        "offset": pack(id),
        "timestamp": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if "key" in record.values:
        told["key"] = {"size": len(bytes_of(record.values["key"]))}
    return told | {"value": {"size": len(record.payload)}}


def _json(status: int, data: object, media: str = "application/json") -> Reply:
    return Reply(status, media, msgspec.json.encode(data))
