"""A webhook's request as formats see it, and what they make of it. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from gateway.config.placeholders import Expression
from gateway.core.errors import BadRequest, GatewayError, PayloadTooLarge, Rejected
from gateway.core.event import NOTHING, EventId, Record

MAX_TOPIC = 255
"""Longest topic, in characters."""

MAX_RECORDS = 10_000
"""Most records in one post: few enough for the deduplication keys of a retry, see `gateway.broker.base`."""

Path = Literal["plain", "topics", "records", "records:batch", "messages"]
"""Which of a source's paths was posted to: its own, one of REST Proxy's, or Event Hubs'."""


class Post(msgspec.Struct, frozen=True):
    """One request: its body after decompression, and what of the rest means something."""

    body: bytes
    content_type: str = ""
    """Lower case, without parameters."""
    headers: Mapping[str, str] = NOTHING
    """By their names in lower case."""
    path: Path = "plain"
    topic: str | None = None
    """From the path or the query: it is every record's."""
    default_topic: Expression | None = None
    """Of records for which nobody else says one."""
    partition: int | None = None
    cluster: str = ""
    id: str | None = None
    """What is the same on every try of this request: deduplicates records that have no key of their own."""
    is_keyed: bool = False
    """Whether ``id`` is an ``Idempotency-Key``: with another body it is a mistake of the sender."""
    fingerprint: str | None = None
    """Of the body, where ``is_keyed`` and all of it is here."""
    type: str | None = None
    """Of records that have none of their own."""
    record_bytes: int | None = None
    """No record that can be taken is larger: it need not be looked at."""
    shared: Mapping[str, str] = NOTHING
    """The headers, as the places of expressions know them."""

    def record(
        self,
        payload: bytes,
        index: int = 0,
        *,
        topic: str | None = None,
        key: str | None = None,
        type: str | None = None,
        timestamp: int | None = None,
        values: Mapping[str, str] = NOTHING,
        fallback: str | None = None,
    ) -> Record:
        """Return a record of this request; ``topic`` is what the format says, ``fallback`` what it may mean.

        Raises BadRequest where nobody says a topic.
        """
        fingerprint = None
        if key is None and self.id is not None:
            key = f"{self.id}/{index}"
            if self.is_keyed:  # of a body that comes in parts, only the record is known
                fingerprint = self.fingerprint or fingerprint_of(payload)
        record = Record(
            self.topic or topic or "",
            payload,
            key,
            self.type if type is None else type,
            timestamp,
            values,
            self.shared,
            index,
            fingerprint,
        )
        if record.topic:
            return _checked(record)
        found = self.default_topic.render(record) if self.default_topic is not None else None
        found = found or fallback
        if not found:
            raise BadRequest("no topic: add ?topic=… or set the source's topic", code="no_topic")
        return _checked(msgspec.structs.replace(record, topic=found))


def fingerprint_of(content: bytes) -> str:
    """Return what tells one content from another: 96 bits of a digest."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _checked(record: Record) -> Record:
    if len(record.topic) > MAX_TOPIC:
        raise Rejected(f"a topic is longer than {MAX_TOPIC} characters", code="bad_topic")
    return record


class Reply(NamedTuple):
    """What the sender is told."""

    status: int
    content_type: str = ""
    body: bytes = b""


Outcome = Sequence[EventId] | GatewayError
"""What became of one record: its events' ids, or why it was refused."""


class Parsed(NamedTuple):
    """What a body holds, in order; an error stands for a record that can never become an event."""

    format: "Format"
    records: Sequence[Record | GatewayError]


class Format:
    """How a kind of sender is answered."""

    atomic = True
    """Whether one record that is refused refuses the whole post."""

    def reply(self, post: Post, parsed: Parsed, outcomes: Sequence[Outcome]) -> Reply:
        """Return the answer to a post of which at least one record was taken, or all."""
        raise NotImplementedError


def empty() -> BadRequest:
    """Return the error of a body without records: a mistake that a 200 would hide."""
    return BadRequest("the body holds no record", code="empty_body")


def too_many() -> PayloadTooLarge:
    """Return the error of a body with too many of them."""
    return PayloadTooLarge(f"at most {MAX_RECORDS} records fit in one post")


def unknown_type(hint: str) -> Rejected:
    """Return the error of a media type that is not understood (415)."""
    return Rejected(
        f"this Content-Type is not understood here; {hint}",
        code="unknown_content_type",
        status=415,
    )
