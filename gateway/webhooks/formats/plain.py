"""JSON values, arrays and lines, and any other body as one record: what most senders post. Pure.

Kafka Connect's sinks (arrays, or batches joined by newlines), Vector, Fluent Bit, Debezium, ``curl -d``.
Payloads are slices of the body, never re-encoded.
"""

import re
from collections.abc import Sequence

import msgspec

from gateway.core.errors import PayloadTooLarge, RecordRejected
from gateway.webhooks import strict_json
from gateway.webhooks.decoding import WHITESPACE
from gateway.webhooks.formats.base import (
    Outcome,
    ParsedPost,
    Post,
    WebhookFormat,
    WebhookResponse,
    empty_body_error,
)
from gateway.webhooks.strict_json import (
    check_element_count,
    check_strict_json,
    is_json,
    too_many_records_error,
)

NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)

TOMBSTONE_HEADER = "mqb.kafka.tombstone"
"""mq-bridge's header for a Kafka record without a value."""

_TRAILING_COMMA = re.compile(rb",\s*\]\s*\Z")
_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class PlainFormat(WebhookFormat):
    """Responds with the ids of all events: ``{"accepted": n, "ids": […]}``."""

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        ids = [str(id) for ids in outcomes if not isinstance(ids, Exception) for id in ids]
        return WebhookResponse(
            200, "application/json", msgspec.json.encode({"accepted": len(ids), "ids": ids}) + b"\n"
        )


PLAIN = PlainFormat()


def parse_auto(post: Post) -> ParsedPost:
    """Return a record per array element, per line of JSON, or one for any other body.

    Content types are too often wrong to be trusted (``curl -d`` says form data).
    Raises BadRequest, RecordRejected or PayloadTooLarge.
    """
    if post.content_type in NDJSON_TYPES:
        return parse_lines(post)
    if post.headers.get(TOMBSTONE_HEADER) == "true":
        return _build_parsed(post, [b"null"])
    body = _require_content(post.body)
    if body.lstrip(WHITESPACE)[:1] == b"[":
        found = _without_trailing_comma(body)
        if found is not None:
            return _parse_elements(post, found)
    elif is_json(body):
        _check_payload(post, body)
        return _build_parsed(post, [body])
    if body.count(b"\n") <= strict_json.MAX_RECORDS:  # a text of more lines is one record
        split = _split_lines(body)
        if len(split) > 1 and all(is_json(line) for line in split):
            for line in split:
                _check_payload(post, line)
            return _build_parsed(post, split)
    return _build_parsed(post, [body])


def parse_single(post: Post) -> ParsedPost:
    """Return the whole body as one record."""
    return _build_parsed(post, [_require_content(post.body)])


def parse_lines(post: Post) -> ParsedPost:
    """Return one record per non-empty line."""
    found = _split_lines(_require_content(post.body))
    for line in found:
        if is_json(line):  # any other text is for the channel to accept or reject
            _check_payload(post, line)
    return _build_parsed(post, found)


def parse_array(post: Post) -> ParsedPost:
    """Return one record per element of a JSON array; a trailing comma is accepted (Lenses)."""
    body = _require_content(post.body)
    found = _without_trailing_comma(body)
    if found is None or found.lstrip(WHITESPACE)[:1] != b"[":
        check_strict_json(body)  # raises the specific error
        raise RecordRejected("the body is not a JSON array", code="bad_json")
    return _parse_elements(post, found)


def _parse_elements(post: Post, body: bytes) -> ParsedPost:
    """Return the elements of an array that is valid JSON."""
    check_element_count(body)
    elements = [bytes(item) for item in _array_decoder.decode(body)]
    for element in elements:
        _check_payload(post, element)
    return _build_parsed(post, elements)


def _without_trailing_comma(body: bytes) -> bytes | None:
    """Return a JSON body without a trailing comma after its last element; None if it is not JSON."""
    if is_json(body):
        return body
    shorter = body[:-1000] + _TRAILING_COMMA.sub(b"]", body[-1000:])
    return shorter if len(shorter) != len(body) and is_json(shorter) else None


def _check_payload(post: Post, payload: bytes) -> None:
    """Raise RecordRejected for ambiguous JSON, or PayloadTooLarge before that."""
    if post.max_record_bytes is not None and len(payload) > post.max_record_bytes:
        raise PayloadTooLarge(f"a record has {len(payload)} bytes, far over limits.event_bytes")
    check_strict_json(payload)


def _build_parsed(post: Post, payloads: Sequence[bytes]) -> ParsedPost:
    if not payloads:
        raise empty_body_error()
    return ParsedPost(PLAIN, [post.build_record(payload, index) for index, payload in enumerate(payloads)])


def _require_content(body: bytes) -> bytes:
    if not body.strip(WHITESPACE):
        raise empty_body_error()
    return body


def _split_lines(body: bytes) -> list[bytes]:
    found: list[bytes] = []
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end].strip(WHITESPACE)
        if line:
            if len(found) == strict_json.MAX_RECORDS:
                raise too_many_records_error()
            found.append(line)
        start = end + 1
    return found
