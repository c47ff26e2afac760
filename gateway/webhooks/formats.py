"""A webhook's body to payloads. Pure; payload bytes are slices of the body, never re-encoded."""

import re
from collections.abc import Sequence

import msgspec

from gateway.errors import BadRequest, PayloadTooLarge

MAX_RECORDS = 10_000
"""Most records in one post: few enough for the deduplication keys of a retry, see `gateway.broker.base`."""

MAX_DEPTH = 1000
"""Nesting that is looked into; JSON decoders give up at about as much."""

NDJSON = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)

_WHITE = b" \t\r\n"
# A string, a flat object or array, or one structural byte. Atomic, so that nothing is scanned twice.
_STRING = rb'"(?>[^"\\]|\\.)*"'
_FLAT = rb'(?>[^{}\[\]"]|' + _STRING + rb")*"
_TOKEN = re.compile(_STRING + rb"|\{(?>" + _FLAT + rb")\}|(?<!^)\[(?>" + _FLAT + rb")\]|[\[\]{},]", re.DOTALL)
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
    return found


def _detect(body: bytes) -> Sequence[bytes]:
    if body.lstrip(_WHITE).startswith(b"["):
        if body.count(b",") >= MAX_RECORDS:
            _check_elements(body)
        try:
            return [bytes(item) for item in _array.decode(body)]
        except (msgspec.MsgspecError, RecursionError):
            pass
    if _is_json(body):
        return [body]
    if body.count(b"\n") > MAX_RECORDS:
        return [body]  # too many lines for a batch; a text of many lines is one record
    lines = _lines(body)
    return lines if len(lines) > 1 and all(_is_json(line) for line in lines) else [body]


def _lines(body: bytes) -> Sequence[bytes]:
    lines: list[bytes] = []
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end].strip(_WHITE)
        if line:
            if len(lines) == MAX_RECORDS:
                raise _too_many()
            lines.append(line)
        start = end + 1
    return lines


def _check_elements(body: bytes) -> None:
    """Refuse an array with too many elements before it is decoded: 16 MiB of ``1,`` would become 1 GiB."""
    depth = elements = 0
    for token in _TOKEN.finditer(body):
        first, size = token[0][0], token.end() - token.start()
        if size > 1:
            continue  # a string, or a flat object or array as a whole
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return  # the decoder refuses it
        elif first in b"]}":
            depth -= 1
        elif depth == 1:
            elements += 1
            if elements >= MAX_RECORDS:
                raise _too_many()


def _too_many() -> PayloadTooLarge:
    return PayloadTooLarge(f"at most {MAX_RECORDS} records fit in one post")


def _is_json(text: bytes) -> bool:
    try:
        _value.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
