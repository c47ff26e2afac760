"""A webhook request as the formats receive it, and the records they return. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from gateway.config.placeholders import Expression
from gateway.core.errors import BadRequest, GatewayError, RecordRejected
from gateway.core.event import NO_VALUES, EventId, Record

MAX_TOPIC_CHARS = 255
"""Longest topic, in characters."""

PostPath = Literal["plain", "topics", "records", "records:batch", "messages"]
"""The path of a source that was posted to: its own, one of REST Proxy's, or Event Hubs'."""


class Post(msgspec.Struct, frozen=True):
    """One request: its body after decompression, and the metadata that formats use."""

    body: bytes
    content_type: str = ""
    """Lower case, without parameters."""
    headers: Mapping[str, str] = NO_VALUES
    """By names in lower case."""
    path: PostPath = "plain"
    topic: str | None = None
    """From the path or the query; applies to every record."""
    default_topic: Expression | None = None
    """For records without any other topic."""
    partition: int | None = None
    cluster: str = ""
    message_id: str | None = None
    """The same on every attempt of this request: deduplicates records that have no key of their own."""
    has_idempotency_key: bool = False
    """Whether ``message_id`` is an ``Idempotency-Key``: reusing it with another body is an error."""
    request_fingerprint: str | None = None
    """Of the body, if ``has_idempotency_key`` and the body is complete."""
    type: str | None = None
    """For records without a type of their own."""
    max_record_bytes: int | None = None
    """Larger records are rejected unread."""
    shared_values: Mapping[str, str] = NO_VALUES
    """The headers, by their placeholder names."""

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
        """Return a record of this request; ``fallback_topic`` applies if nothing else sets a topic.

        Raises BadRequest for a record without a topic, RecordRejected for one with too long a topic.
        """
        fingerprint = None
        if deduplication_key is None and self.message_id is not None:
            deduplication_key = f"{self.message_id}/{index}"
            if self.has_idempotency_key:  # of a streamed body, only the record is known
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
        if not record.topic:
            found = self.default_topic.render(record) if self.default_topic is not None else None
            if not (found := found or fallback_topic):
                raise BadRequest("no topic: add ?topic=… or set the source's topic", code="no_topic")
            record = msgspec.structs.replace(record, topic=found)
        if len(record.topic) > MAX_TOPIC_CHARS:
            raise RecordRejected(f"a topic is longer than {MAX_TOPIC_CHARS} characters", code="bad_topic")
        return record


def fingerprint_of(content: bytes) -> str:
    """Return a 96-bit digest that tells contents apart."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


class WebhookResponse(NamedTuple):
    """The HTTP response to the sender."""

    status: int
    content_type: str = ""
    body: bytes = b""


Outcome = Sequence[EventId] | GatewayError
"""The result of one record: the ids of its events, or why it was rejected."""


class ParsedPost(NamedTuple):
    """The records of a body, in order; an error replaces a record that can never become an event."""

    format: "WebhookFormat"
    records: Sequence[Record | GatewayError]


class WebhookFormat:
    """The responses that a kind of sender expects."""

    is_atomic = True
    """Whether one rejected record rejects the whole post."""

    def build_response(self, post: Post, parsed: ParsedPost, outcomes: Sequence[Outcome]) -> WebhookResponse:
        """Return the response to a post of which all records, or at least one, were accepted."""
        raise NotImplementedError


def empty_body_error() -> BadRequest:
    """Return the error for a body without records, which a 200 would hide."""
    return BadRequest("the body holds no record", code="empty_body")


def unsupported_type_error(hint: str) -> RecordRejected:
    """Return the error for an unsupported media type (415)."""
    return RecordRejected(
        f"unsupported Content-Type: {hint}",
        code="unknown_content_type",
        status=415,
    )
