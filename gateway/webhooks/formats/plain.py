"""JSON values, arrays, lines, and anything else as one record: what most senders post. Pure.

Kafka Connect's sinks (arrays, or batches joined by newlines), Vector, Fluent Bit, Debezium, ``curl -d``.
Payloads are slices of the body, never re-encoded.
"""

import re
from collections.abc import Sequence

import msgspec

from gateway.core.errors import PayloadTooLarge, Rejected
from gateway.webhooks.formats import base as limits
from gateway.webhooks.formats.base import Format, Outcome, Parsed, Post, Reply, empty, too_many
from gateway.webhooks.strict_json import has_more, is_json, skeleton

NDJSON = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"}
)

TOMBSTONE = "mqb.kafka.tombstone"
"""mq-bridge's header for a Kafka record without a value."""

_WHITE = b" \t\r\n"
_TRAILING_COMMA = re.compile(rb",\s*\]\s*\Z")
_array = msgspec.json.Decoder(list[msgspec.Raw])


class Plain(Format):
    """Answers with the ids of all events."""

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return ``{"accepted": n, "ids": […]}``."""
        ids = [str(id) for ids in outcomes if not isinstance(ids, Exception) for id in ids]
        return Reply(200, "application/json", msgspec.json.encode({"accepted": len(ids), "ids": ids}) + b"\n")


PLAIN = Plain()


def detect(post: Post) -> Parsed:
    """An array is one record each, a JSON value one, lines of JSON one each; all else is one as it is.

    Senders' content types are too often wrong to be believed (``curl -d`` says form data).
    Raises BadRequest, Rejected or PayloadTooLarge.
    """
    if post.content_type in NDJSON:
        return lines(post)
    if post.headers.get(TOMBSTONE) == "true":
        return _parsed(post, [b"null"])
    body = _not_empty(post.body)
    if body.lstrip(_WHITE)[:1] == b"[":
        found = _as_json(body)
        if found is not None:
            return _elements(post, found)
    elif is_json(body):
        _look(post, body)
        return _parsed(post, [body])
    if body.count(b"\n") <= limits.MAX_RECORDS:  # a text of more lines is one record
        split = _split(body)
        if len(split) > 1 and all(is_json(line) for line in split):
            for line in split:
                _look(post, line)
            return _parsed(post, split)
    return _parsed(post, [body])


def single(post: Post) -> Parsed:
    """Return the whole body as one record."""
    return _parsed(post, [_not_empty(post.body)])


def lines(post: Post) -> Parsed:
    """Return one record per line that is not empty."""
    found = _split(_not_empty(post.body))
    for line in found:
        if is_json(line):  # else its channel says what is wrong with it, if it minds
            _look(post, line)
    return _parsed(post, found)


def array(post: Post) -> Parsed:
    """Return one record per element of a JSON array; a comma after the last one is forgiven (Lenses)."""
    body = _not_empty(post.body)
    found = _as_json(body)
    if found is None or found.lstrip(_WHITE)[:1] != b"[":
        skeleton(body)  # says what is wrong with it as JSON
        raise Rejected("the body is not a JSON array", code="bad_json")
    return _elements(post, found)


def _elements(post: Post, body: bytes) -> Parsed:
    """Return the elements of an array that is valid JSON."""
    if has_more(body, limits.MAX_RECORDS):
        raise too_many()
    elements = [bytes(item) for item in _array.decode(body)]
    for element in elements:
        _look(post, element)
    return _parsed(post, elements)


def _as_json(body: bytes) -> bytes | None:
    """Return a body that is JSON, without a comma after its last element; None if it is none."""
    if is_json(body):
        return body
    shorter = body[:-1000] + _TRAILING_COMMA.sub(b"]", body[-1000:])
    return shorter if len(shorter) != len(body) and is_json(shorter) else None


def _look(post: Post, payload: bytes) -> None:
    """Refuse one record that readers would differ on; one that is too large is not even looked at."""
    if post.record_bytes is not None and len(payload) > post.record_bytes:
        raise PayloadTooLarge(f"a record has {len(payload)} bytes, and limits.event_bytes allows far less")
    skeleton(payload)


def _parsed(post: Post, payloads: Sequence[bytes]) -> Parsed:
    if not payloads:
        raise empty()
    return Parsed(PLAIN, [post.record(payload, index) for index, payload in enumerate(payloads)])


def _not_empty(body: bytes) -> bytes:
    if not body.strip(_WHITE):
        raise empty()
    return body


def _split(body: bytes) -> list[bytes]:
    found: list[bytes] = []
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end].strip(_WHITE)
        if line:
            if len(found) == limits.MAX_RECORDS:
                raise too_many()
            found.append(line)
        start = end + 1
    return found
