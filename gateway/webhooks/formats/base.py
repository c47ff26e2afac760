"""A webhook's request as formats see it, and what they make of it. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from gateway.config.placeholders import Expression
from gateway.core.errors import BadRequest, GatewayError, PayloadTooLarge, RecordRejected
from gateway.core.event import NO_VALUES, EventId, Record

MAX_TOPIC_CHARS = 255
"""Longest topic, in characters."""

MAX_RECORDS = 10_000
"""Most records in one post: few enough for the deduplication keys of a retry, see `gateway.broker.base`."""

PostPath = Literal["plain", "topics", "records", "records:batch", "messages"]
"""Which of a source's paths was posted to: its own, one of REST Proxy's, or Event Hubs'."""


class Post(msgspec.Struct, frozen=True):
    """One request: its body after decompression, and what of the rest means something."""

    body: bytes
    content_type: str = ""
    """Lower case, without parameters."""
    headers: Mapping[str, str] = NO_VALUES
    """By their names in lower case."""
    path: PostPath = "plain"
    topic: str | None = None
    """From the path or the query: it is every record's."""
    default_topic: Expression | None = None
    """Of records for which nobody else says one."""
    partition: int | None = None
    cluster: str = ""
    message_id: str | None = None
    """What is the same on every try of this request: deduplicates records that have no key of their own."""
    has_idempotency_key: bool = False
    """Whether ``id`` is an ``Idempotency-Key``: with another body it is a mistake of the sender."""
    request_fingerprint: str | None = None
    """Of the body, where ``is_keyed`` and all of it is here."""
    type: str | None = None
    """Of records that have none of their own."""
    max_record_bytes: int | None = None
    """No record that can be taken is larger: it need not be looked at."""
    shared_values: Mapping[str, str] = NO_VALUES
    """The headers, as the places of expressions know them."""

    def build_record(
        self,
        payload: bytes,
        index: int = 0,
        *,
        topic: str | None = None,
        deduplication_key: str | None = None,
        type: str | None = None,
        timestamp_ms: int | None = None,
        placeholder_values: Mapping[str, str] = NO_VALUES,
        fallback_topic: str | None = None,
    ) -> Record:
        """Return a record of this request; ``topic`` is what the format says, ``fallback`` what it may mean.

        Raises BadRequest where nobody says a topic.
        """
        fingerprint = None
        if deduplication_key is None and self.message_id is not None:
            deduplication_key = f"{self.message_id}/{index}"
            if self.has_idempotency_key:  # of a body that comes in parts, only the record is known
                fingerprint = self.request_fingerprint or fingerprint_of(payload)
        record = Record(
            self.topic or topic or "",
            payload,
            deduplication_key,
            self.type if type is None else type,
            timestamp_ms,
            placeholder_values,
            self.shared_values,
            index,
            fingerprint,
        )
        if record.topic:
            return _check_topic(record)
        found = self.default_topic.render(record) if self.default_topic is not None else None
        found = found or fallback_topic
        if not found:
            raise BadRequest("no topic: add ?topic=… or set the source's topic", code="no_topic")
        return _check_topic(msgspec.structs.replace(record, topic=found))


def fingerprint_of(content: bytes) -> str:
    """Return what tells one content from another: 96 bits of a digest."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _check_topic(record: Record) -> Record:
    if len(record.topic) > MAX_TOPIC_CHARS:
        raise RecordRejected(f"a topic is longer than {MAX_TOPIC_CHARS} characters", code="bad_topic")
    return record


class WebhookResponse(NamedTuple):
    """What the sender is told."""

    status: int
    content_type: str = ""
    body: bytes = b""


Outcome = Sequence[EventId] | GatewayError
"""What became of one record: its events' ids, or why it was refused."""


class ParsedPost(NamedTuple):
    """What a body holds, in order; an error stands for a record that can never become an event."""

    format: "WebhookFormat"
    records: Sequence[Record | GatewayError]


class WebhookFormat:
    """How a kind of sender is answered."""

    is_atomic = True
    """Whether one record that is refused refuses the whole post."""

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        """Return the answer to a post of which at least one record was taken, or all."""
        raise NotImplementedError


def empty_body_error() -> BadRequest:
    """Return the error of a body without records: a mistake that a 200 would hide."""
    return BadRequest("the body holds no record", code="empty_body")


def too_many_records_error() -> PayloadTooLarge:
    """Return the error of a body with too many of them."""
    return PayloadTooLarge(f"at most {MAX_RECORDS} records fit in one post")


def unsupported_type_error(hint: str) -> RecordRejected:
    """Return the error of a media type that is not understood (415)."""
    return RecordRejected(
        f"this Content-Type is not understood here; {hint}",
        code="unknown_content_type",
        status=415,
    )
