"""A webhook's body to payloads. Pure; payload bytes are slices of the body, never re-encoded."""

from collections.abc import Sequence

import msgspec

from gateway.errors import BadRequest, PayloadTooLarge

MAX_RECORDS = 50_000
"""Most records in one post."""

NDJSON = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)

_WHITE = b" \t\r\n"
_value = msgspec.json.Decoder(msgspec.Raw)
_array = msgspec.json.Decoder(list[msgspec.Raw])


def payloads(content_type: str, body: bytes) -> Sequence[bytes]:
    """Return the payload of each record in the body.

    NDJSON is one record per line. Otherwise the whole body may be one JSON value (of an array each
    element is a record), else each line may be JSON, else the body is one record as it is: senders'
    content types are too often wrong to be believed (``curl -d`` says form data).

    Raises BadRequest for a body without a record, PayloadTooLarge for more than `MAX_RECORDS`.
    """
    if not body.strip(_WHITE):
        raise BadRequest("the body is empty", code="empty_body")
    found = _lines(body) if content_type in NDJSON else _detect(body)
    if not found:
        raise BadRequest("the body holds no record", code="empty_body")
    if len(found) > MAX_RECORDS:
        raise PayloadTooLarge(f"the body holds {len(found)} records; at most {MAX_RECORDS} fit in one post")
    return found


def _detect(body: bytes) -> Sequence[bytes]:
    if body.lstrip(_WHITE).startswith(b"["):
        try:
            return [bytes(item) for item in _array.decode(body)]
        except (msgspec.MsgspecError, RecursionError):
            pass
    if _is_json(body):
        return [body]
    lines = _lines(body)
    return lines if len(lines) > 1 and all(_is_json(line) for line in lines) else [body]


def _lines(body: bytes) -> Sequence[bytes]:
    return [line for line in (raw.strip(_WHITE) for raw in body.split(b"\n")) if line]


def _is_json(text: bytes) -> bool:
    try:
        _value.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
