"""The values on the path of an event: ids, records, drafts, events. All are immutable."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec

# 15 digits of milliseconds reach the year 33658; 10 digits of sequence are more than fit into a millisecond.
_ID_PATTERN = re.compile(r"([0-9]{1,15})-([0-9]{1,10})", re.ASCII)
_MAX_SEQ = 10**10 - 1

GAP_EVENT_TYPE = "stream.gap"
"""The type of an event that reports a gap. Upstream types never start with ``stream.``."""

CONTROL_CHANNEL_PREFIX = "!"
"""Prefix of the channels for node-to-node commands; the names of other channels cannot begin with it."""

_RESERVED_TYPES = frozenset({"open", "error"})
_LINE_ENDS_AND_NUL = re.compile(r"[\r\n\x00\x85\u2028\u2029]")
MAX_EVENT_TYPE_CHARS = 200
"""Longest event type, in characters."""


class EventId(NamedTuple):
    """A position in the one order of all events: ``<unix-ms>-<seq>``. Opaque to clients."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "EventId | None":
        """Return the id in ``text``, or None if it is invalid: that is a gap, never an error."""
        match = _ID_PATTERN.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None

    @classmethod
    def last_before_ms(cls, ms: int) -> "EventId":
        """Return the greatest id before all ids of the millisecond ``ms``."""
        return cls(max(ms - 1, 0), _MAX_SEQ)


MAX_TIMESTAMP_MS = 10**14
"""Largest plausible timestamp in unix milliseconds (the year 5138); larger ones are micro- or nanoseconds."""

PACKED_SEQ_BITS = 20
"""Number of low bits of a packed id that hold the sequence."""

_PACKED_SEQ = (1 << PACKED_SEQ_BITS) - 1
_PACKED_MS = 2**43 - 1

MAX_PACKED_ID = 2**63 - 1
"""Largest packed id."""


def pack_id(id: EventId) -> int:
    """Return an id as an integer of 63 bits in the same order; ids that no log assigns are clipped."""
    ms: int = min(id.ms, _PACKED_MS)
    return (ms << PACKED_SEQ_BITS) | min(id.seq, _PACKED_SEQ)


def unpack_id(number: int) -> EventId:
    """Return the id of a number from `pack_id`."""
    # The same as EventId(…) in half the time, for every append and read (ingest, herd).
    return tuple.__new__(EventId, (number >> PACKED_SEQ_BITS, number & _PACKED_SEQ))


def decode_lossless(data: bytes) -> str:
    """Decode UTF-8 without loss: invalid bytes become lone surrogates (PEP 383).

    So different bytes stay different when they are compared, routed or deduplicated.
    """
    return data.decode(errors="surrogateescape")


def encode_lossless(text: str) -> bytes:
    """Return the bytes that `decode_lossless` decoded."""
    return text.encode(errors="surrogateescape")


def parse_iso8601_ms(text: str) -> int:
    """Return the unix milliseconds of an ISO 8601 time, UTC if it has no zone. Raises ValueError.

    ``t`` and ``z`` may be in lower case (RFC 3339 §5.6).
    """
    time = datetime.fromisoformat(text.upper())
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


NO_VALUES: Mapping[str, str] = MappingProxyType({})
"""An empty mapping, shared by all records without values."""


class Retention(msgspec.Struct, frozen=True):
    """How much history of a channel the broker keeps. ``max_events`` 0 is fan-out only: nothing is kept."""

    max_events: int
    max_age_ms: int | None = None


class Record(msgspec.Struct, frozen=True):
    """What a source yields: a payload under a topic, with the metadata that its format has."""

    topic: str
    payload: bytes
    deduplication_key: str | None = None
    """Unique within the source."""
    type: str | None = None
    timestamp_ms: int | None = None
    """Unix milliseconds."""
    placeholder_values: Mapping[str, str] = NO_VALUES
    """Values for placeholders: ``key``, ``headers.…``."""
    shared_values: Mapping[str, str] = NO_VALUES
    """Values that all records of one request or batch share, such as the request's headers."""
    batch_index: int = 0
    """Position of the record in that request or batch."""
    request_fingerprint: str | None = None
    """Fingerprint of the whole request if its sender chose the key: a reused key is then a conflict."""


class Draft(msgspec.Struct, frozen=True):
    """An event before the broker assigns its id."""

    channel: str
    payload: bytes
    timestamp_ms: int
    retention: Retention
    type: str | None = None
    deduplication_key: str | None = None
    """The broker appends one draft per key and channel."""
    request_fingerprint: str | None = None
    """The same key with another fingerprint is a conflict, not a duplicate."""


DELETED_OFFSET = ""
"""The offset of a partition or key that no longer exists; storing it deletes the entry from the log."""


class SourceOffset(msgspec.Struct, frozen=True):
    """How far a source was read; stored in one transaction with the events that came of it."""

    key: str
    """The source's name; for one of its partitions or stream keys ``source/partition``."""
    value: str
    """In a format of the source; `DELETED_OFFSET` deletes the stored one."""


class FencingToken(msgspec.Struct, frozen=True):
    """Proof of a lease. Tokens of a lease only grow, so an append with an older one is rejected."""

    lease: str
    number: int


class AppendedIds(list[EventId]):
    """The ids of a batch's drafts, of which ``duplicate_count`` were appended before."""

    def __init__(self, ids: Iterable[EventId] = (), duplicate_count: int = 0) -> None:
        super().__init__(ids)
        self.duplicate_count = duplicate_count


class Event(msgspec.Struct, frozen=True):
    """One event of the log."""

    id: EventId
    channel: str
    payload: bytes
    timestamp_ms: int
    """Unix milliseconds: the upstream's timestamp, or the time of arrival."""
    type: str | None = None
    is_retained: bool = True
    """False for channels without history: the id orders the event and is not sent to clients."""


def client_event_type(type_: str | None) -> str | None:
    """Return the type that clients see: reserved names become ``message``.

    Raises ValueError for a type that cannot be written to a stream: CR, LF and NUL would inject fields
    (WHATWG HTML §9.2.6), as would U+0085, U+2028 and U+2029 in parsers that take them for line ends; a lone
    surrogate has no UTF-8 form.
    """
    if type_ is None or type_ == "":
        return None
    if len(type_) > MAX_EVENT_TYPE_CHARS:
        raise ValueError(f"event type is longer than {MAX_EVENT_TYPE_CHARS} characters")
    if _LINE_ENDS_AND_NUL.search(type_):
        raise ValueError("event type contains NUL or a line end (CR, LF, U+0085, U+2028 or U+2029)")
    try:
        type_.encode()
    except UnicodeEncodeError:
        raise ValueError("event type is not valid Unicode") from None
    if type_ in _RESERVED_TYPES or type_.startswith("stream."):
        return "message"
    return type_
