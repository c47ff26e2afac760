"""Confluent's REST Proxy, v1, v2 and v3, and compatible senders. Pure.

Formats: https://docs.confluent.io/platform/current/kafka-rest/api.html; Strimzi's bridge and Karapace
differ in details that are accepted as well (``text`` records, ``headers``, ``timestamp``). A rejected
record has an error in its place, and the others are appended. The offset is the event's id as one number:
it grows, and is the same on all nodes.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.core.errors import GatewayError, PayloadTooLarge, RecordRejected
from gateway.core.event import (
    MAX_TIMESTAMP_MS,
    Record,
    decode_lossless,
    encode_lossless,
    pack_id,
    parse_iso8601_ms,
)
from gateway.webhooks.decoding import decode_base64_field
from gateway.webhooks.formats.base import (
    Outcome,
    ParsedPost,
    Post,
    WebhookFormat,
    WebhookResponse,
    unsupported_type_error,
)
from gateway.webhooks.strict_json import array_elements, object_member

CLUSTER_ID = "sse-gateway"

ENCODED_SIZE_FACTOR = 4
"""An encoded record, with escapes, key and headers, may have this many times `Post.max_record_bytes`."""

_MEDIA_TYPE = re.compile(r"application/vnd\.kafka(?:\.(json|binary|text))?(?:\.(v1|v2))?\+json")
_MEDIA_TYPE_PREFIX = "application/vnd.kafka"
_ERROR_CODES = {
    401: 40101,
    403: 40301,
    404: 40401,
    408: 40801,
    413: 41301,
    422: 42206,
    429: 42901,
    503: 50301,
}
_PERMANENT_ERROR, _RETRIABLE_ERROR = 50002, 50003
_NULL = msgspec.Raw(b"null")


class _Header(msgspec.Struct):
    value: str | None = None
    name: str = ""
    key: str = ""  # Strimzi's word


class _RecordV2(msgspec.Struct):
    value: msgspec.Raw = _NULL
    key: msgspec.Raw = _NULL
    partition: int | None = None
    timestamp: int | None = None
    headers: list[_Header] = []


class _TypedValue(msgspec.Struct):
    type: str = ""
    data: msgspec.Raw = _NULL


class _RecordV3(msgspec.Struct):
    value: _TypedValue | None = None
    key: _TypedValue | None = None
    partition_id: int | None = None
    timestamp: str | None = None
    headers: list[_Header] = []


class _BatchEntry(_RecordV3):
    id: str = ""


_record_v2_decoder = msgspec.json.Decoder(_RecordV2)
_record_v3_decoder = msgspec.json.Decoder(_RecordV3)
_batch_entry_decoder = msgspec.json.Decoder(_BatchEntry)
_string_decoder = msgspec.json.Decoder(str)


def matches(post: Post) -> bool:
    """Return whether a post is v1 or v2; ``{"records": […]}`` as plain JSON is, on its own path only."""
    if post.content_type.startswith(_MEDIA_TYPE_PREFIX):
        return True
    return (
        post.path == "topics"
        and post.content_type in ("application/json", "")
        and b'"records"' in post.body[:4096]
        and post.body.lstrip()[:1] == b"{"
    )


def parse(post: Post) -> ParsedPost:
    """Return the records of a v1 or v2 request. Raises RecordRejected or PayloadTooLarge."""
    media = _MEDIA_TYPE.fullmatch(post.content_type)
    if media is None and post.content_type.startswith(_MEDIA_TYPE_PREFIX):
        raise unsupported_type_error("embedded formats are json, binary and text, without schemas")
    # Without an embedded format it is base64, as v1's clients post it.
    embedded = (media[1] or "binary") if media else "json"
    items = _encoded_records(post, "records")
    records = [_decode_or_error(_decode_v2, post, item, embedded, index) for index, item in enumerate(items)]
    return ParsedPost(V1 if media and media[2] == "v1" else V2, records)


def parse_batch(post: Post) -> ParsedPost:
    """Return the records of a v3 ``records:batch`` request. Raises RecordRejected or PayloadTooLarge."""
    entries = _encoded_records(post, "entries")
    records = [parse_record_v3(post, item, index) for index, item in enumerate(entries)]
    return ParsedPost(RestProxyBatch([_entry_id(item) for item in entries]), records)


def _encoded_records(post: Post, key: str) -> list[bytes]:
    """Return the records of a body, as they were written. Raises RecordRejected or PayloadTooLarge."""
    found = object_member(post.body, key)
    if found[:1] != b"[" or not found[1:-1].strip():
        raise RecordRejected(f'the body must be {{"{key}": [{{"value": …}}, …]}}', code="bad_records")
    return array_elements(found, _max_encoded_bytes(post))


def _max_encoded_bytes(post: Post) -> int | None:
    """Return the encoded size beyond which a record can never become an event."""
    return None if post.max_record_bytes is None else ENCODED_SIZE_FACTOR * post.max_record_bytes


def parse_record_v3(post: Post, text: bytes, index: int = 0) -> Record | GatewayError:
    """Return one record of v3, or what is wrong with it."""
    return _decode_or_error(_decode_v3, post, text, "", index)


def build_error_response(path: str, content_type: str, error: GatewayError) -> WebhookResponse | None:
    """Return an error as the requested version of REST Proxy writes it; None for other requests."""
    # REST Proxy has no 400 for a body: one that it cannot read is 422.
    status = 422 if error.status == 400 else error.status
    if path in ("records", "records:batch"):
        return _json_response(status, {"error_code": status, "message": escape_surrogates(error.message)})
    if path != "topics" and not content_type.startswith(_MEDIA_TYPE_PREFIX):
        return None
    code = _ERROR_CODES.get(status, status * 100)
    return _json_response(
        status, {"error_code": code, "message": escape_surrogates(error.message)}, V2.media_type
    )


def escape_surrogates(message: str) -> str:
    """Return a message that can be encoded: headers that are not UTF-8 hold surrogates."""
    return message.encode(errors="backslashreplace").decode()


def _decode_or_error(
    decode: Any, post: Post, text: bytes, embedded: str, index: int
) -> Record | GatewayError:
    most = _max_encoded_bytes(post)
    if most is not None and len(text) > most:
        return PayloadTooLarge(f"record {index} has {len(text)} bytes, far over limits.event_bytes")
    try:
        record: Record = decode(post, text, embedded, index)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        return RecordRejected(f"record {index} has the wrong shape: {error}", code="bad_records")
    except GatewayError as error:
        return error
    return record


def _decode_v2(post: Post, text: bytes, embedded: str, index: int) -> Record:
    record = _record_v2_decoder.decode(text)
    partition = post.partition if record.partition is None else record.partition
    key = None if record.key == _NULL else decode_lossless(_decode_embedded(record.key, embedded, "key"))
    return post.build_record(
        b"null" if record.value == _NULL else _decode_embedded(record.value, embedded, "value"),
        index,
        timestamp_ms=record.timestamp,
        placeholder_values=_placeholder_values(key, partition or 0, record.headers),
    )


def _decode_v3(post: Post, text: bytes, embedded: str, index: int) -> Record:
    record = _record_v3_decoder.decode(text)
    key = None
    if record.key is not None and record.key.data != _NULL:
        key = decode_lossless(_decode_typed(record.key, "key"))
    value = record.value
    return post.build_record(
        b"null" if value is None or value.data == _NULL else _decode_typed(value, "value"),
        index,
        timestamp_ms=None if record.timestamp is None else _parse_timestamp(record.timestamp),
        placeholder_values=_placeholder_values(key, record.partition_id or 0, record.headers),
    )


def _decode_embedded(raw: msgspec.Raw, embedded: str, what: str) -> bytes:
    if embedded == "json":
        text = bytes(raw)
        return _string_decoder.decode(text).encode() if what == "key" and text[:1] == b'"' else text
    decoded = _string_decoder.decode(raw)
    return decode_base64_field(decoded, what) if embedded == "binary" else decoded.encode()


def _decode_typed(value: _TypedValue, what: str) -> bytes:
    if value.type == "JSON":
        return _decode_embedded(value.data, "json", what)
    if value.type in ("STRING", "BINARY"):
        return _decode_embedded(value.data, "text" if value.type == "STRING" else "binary", what)
    raise RecordRejected(
        f"the {what}'s type must be JSON, STRING or BINARY, without a schema", code="bad_records"
    )


def _placeholder_values(key: str | None, partition: int, headers: Sequence[_Header]) -> Mapping[str, str]:
    values = {"partition": str(partition)}
    if key is not None:
        values["key"] = key
    for header in headers:
        if header.value is not None:
            name = (header.name or header.key).lower()
            values.setdefault(f"headers.{name}", decode_lossless(decode_base64_field(header.value, "header")))
    return values


def _parse_timestamp(text: str) -> int:
    try:
        found = parse_iso8601_ms(text)
    except ValueError:
        raise RecordRejected("the timestamp is not ISO 8601", code="bad_timestamp") from None
    if not 0 <= found < MAX_TIMESTAMP_MS:
        raise RecordRejected("the timestamp is out of range", code="bad_timestamp")
    return found


def _entry_id(entry: bytes) -> str:
    try:
        return _batch_entry_decoder.decode(entry).id
    except (msgspec.MsgspecError, RecursionError):
        return ""


class _RestProxyOffsets(WebhookFormat):
    """v1 and v2: ``{"offsets": […]}``, an offset or an error for each record."""

    is_atomic = False

    def __init__(self, version: str) -> None:
        self.media_type = f"application/vnd.kafka.{version}+json"

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        offsets = [
            _offset_entry(record, outcome) for record, outcome in zip(parsed.records, outcomes, strict=True)
        ]
        return _json_response(
            200, {"offsets": offsets, "key_schema_id": None, "value_schema_id": None}, self.media_type
        )


def _offset_entry(record: Record | GatewayError, outcome: Outcome) -> dict[str, Any]:
    partition = offset = code = message = None
    if isinstance(outcome, GatewayError):
        code = _RETRIABLE_ERROR if outcome.status >= 500 else _PERMANENT_ERROR
        message = escape_surrogates(outcome.message)
    else:
        offset = pack_id(outcome[-1])
        partition = 0 if isinstance(record, GatewayError) else int(record.placeholder_values["partition"])
    return {"partition": partition, "offset": offset, "error_code": code, "error": message}


V2 = _RestProxyOffsets("v2")
V1 = _RestProxyOffsets("v1")


class RestProxyBatch(WebhookFormat):
    """v3's ``records:batch``: successes and failures by the ids that the sender chose."""

    is_atomic = False

    def __init__(self, ids: Sequence[str]) -> None:
        self._ids = ids

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        successes: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        for id, record, outcome in zip(self._ids, parsed.records, outcomes, strict=True):
            receipt = {"id": id, **build_receipt(post, record, outcome)}
            (failures if isinstance(outcome, GatewayError) else successes).append(receipt)
        return _json_response(207, {"successes": successes, "failures": failures})


def build_receipt(post: Post, record: Record | GatewayError, outcome: Outcome) -> dict[str, Any]:
    """Return v3's receipt of one record."""
    if isinstance(outcome, GatewayError) or isinstance(record, GatewayError):
        error = outcome if isinstance(outcome, GatewayError) else record
        assert isinstance(error, GatewayError)
        return {"error_code": error.status, "message": escape_surrogates(error.message)}
    id = outcome[-1]
    time = datetime.fromtimestamp((id.ms if record.timestamp_ms is None else record.timestamp_ms) / 1000, UTC)
    receipt = {
        "error_code": 200,
        "cluster_id": post.cluster or CLUSTER_ID,
        "topic_name": record.topic,
        "partition_id": int(record.placeholder_values["partition"]),
        "offset": pack_id(id),
        "timestamp": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if "key" in record.placeholder_values:
        receipt["key"] = {"size": len(encode_lossless(record.placeholder_values["key"]))}
    return receipt | {"value": {"size": len(record.payload)}}


def _json_response(status: int, data: object, media: str = "application/json") -> WebhookResponse:
    return WebhookResponse(status, media, msgspec.json.encode(data))
