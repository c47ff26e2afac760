"""The values that travel through the gateway: ids, records, drafts, events. All frozen."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec

# 15 digits of milliseconds reach the year 33658; 10 of sequence are more than one millisecond can
# hold. Together they stay far under the 40 bytes that DESIGN allows an id.
_ID_PATTERN = re.compile(r"([0-9]{1,15})-([0-9]{1,10})", re.ASCII)
_MAX_SEQ = 10**10 - 1

GAP_EVENT_TYPE = "stream.gap"
"""The type of an event that tells a hole. Upstream types never start with ``stream.``."""

CONTROL_CHANNEL_PREFIX = "!"
"""What the names of channels begin with that nodes talk to each other on; no client's channel can."""

_RESERVED_TYPES = frozenset({"open", "error"})
_LINE_ENDS_AND_NUL = re.compile(r"[\r\n\x00\x85\u2028\u2029]")
MAX_EVENT_TYPE_CHARS = 200
"""Longest event type, in characters."""


class EventId(NamedTuple):
    """A place in the one global order: ``<unix-ms>-<seq>``. Opaque to clients."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "EventId | None":
        """Return the id that ``text`` spells, or None: a forged id is a gap, never an error."""
        match = _ID_PATTERN.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None

    @classmethod
    def last_before_ms(cls, ms: int) -> "EventId":
        """Return the greatest id that lies before every id of the millisecond ``ms``."""
        return cls(max(ms - 1, 0), _MAX_SEQ)


MAX_TIMESTAMP_MS = 10**14
"""Unix milliseconds that no event reaches (the year 5138); larger numbers are micro- or nanoseconds."""

PACKED_SEQ_BITS = 20
"""Low bits of a packed id."""

_PACKED_SEQ = (1 << PACKED_SEQ_BITS) - 1
_PACKED_MS = 2**43 - 1

MAX_PACKED_ID = 2**63 - 1
"""No packed id is greater."""


def pack_id(id: EventId) -> int:
    """Return an id as one integer of 63 bits in the same order; ids that no log gives are clipped."""
    ms: int = min(id.ms, _PACKED_MS)
    return (ms << PACKED_SEQ_BITS) | min(id.seq, _PACKED_SEQ)


def unpack_id(number: int) -> EventId:
    """Return the id that `pack` made a number of."""
    # What EventId(…) does, in half the time: every append and every read pays for it.
    return tuple.__new__(EventId, (number >> PACKED_SEQ_BITS, number & _PACKED_SEQ))


def decode_lossless(data: bytes) -> str:
    """Return bytes as text, without loss: those that are no UTF-8 become lone surrogates (PEP 383).

    So different bytes stay different, whatever they are compared, routed or deduplicated by.
    """
    return data.decode(errors="surrogateescape")


def encode_lossless(text: str) -> bytes:
    """Return the bytes that `text_of` made a text of."""
    return text.encode(errors="surrogateescape")


def parse_iso8601_ms(text: str) -> int:
    """Return unix milliseconds of an ISO 8601 time; without a zone it is UTC. Raises ValueError.

    ``t`` and ``z`` may be in lower case (RFC 3339 §5.6).
    """
    time = datetime.fromisoformat(text.upper())
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


NO_VALUES: Mapping[str, str] = MappingProxyType({})
"""No values."""


class Retention(msgspec.Struct, frozen=True):
    """How much of a channel the broker keeps. ``events`` 0 is fan-out only: nothing is kept."""

    max_events: int
    max_age_ms: int | None = None


class Record(msgspec.Struct, frozen=True):
    """What a source yields: bytes under a topic, with whatever the format told about them."""

    topic: str
    payload: bytes
    deduplication_key: str | None = None
    """Deduplication key, unique within the source."""
    type: str | None = None
    timestamp_ms: int | None = None
    """Unix milliseconds."""
    placeholder_values: Mapping[str, str] = NO_VALUES
    """What its format says about it, for the places of expressions: ``key``, ``headers.…``."""
    shared_values: Mapping[str, str] = NO_VALUES
    """The same for all records that came with it, such as the request's headers."""
    batch_index: int = 0
    """Its place among those."""
    request_fingerprint: str | None = None
    """Of the whole request, where its sender chose the key: the key with another request is a conflict."""


class Draft(msgspec.Struct, frozen=True):
    """An event before the broker gave it an id."""

    channel: str
    payload: bytes
    timestamp_ms: int
    retention: Retention
    type: str | None = None
    deduplication_key: str | None = None
    """Deduplication key: the broker appends one draft per key and channel."""
    request_fingerprint: str | None = None
    """Fingerprint of the request: the same key with another fingerprint is a conflict, not a duplicate."""


DELETED_OFFSET = ""
"""The position of a part of a source that no longer exists: the log forgets the part."""


class SourceOffset(msgspec.Struct, frozen=True):
    """How far a source has read, stored in the same transaction as the events it led to."""

    key: str
    """The source's name; for one part of it (a stream, a partition) ``source/part``."""
    value: str
    """In the source's own words; `DELETED_OFFSET` removes what is stored."""


class FencingToken(msgspec.Struct, frozen=True):
    """Proof of a lease. Tokens of one name only grow, so an append with an older one is refused."""

    lease: str
    number: int


class AppendedIds(list[EventId]):
    """The ids of a batch's drafts. ``duplicates`` is how many of them an earlier draft had already."""

    def __init__(self, ids: Iterable[EventId] = (), duplicate_count: int = 0) -> None:
        super().__init__(ids)
        self.duplicate_count = duplicate_count


class Event(msgspec.Struct, frozen=True):
    """One event of the log."""

    id: EventId
    channel: str
    payload: bytes
    timestamp_ms: int
    """Unix milliseconds, as the upstream gave it, else the time of arrival."""
    type: str | None = None
    is_retained: bool = True
    """False for channels without history: the id orders the event here and is not shown."""


def client_event_type(type_: str | None) -> str | None:
    """Return the type that clients may see: reserved names become ``message``.

    Raises ValueError for one that cannot be written on a stream: CR, LF and NUL would inject
    fields (WHATWG HTML §9.2.6), and so would U+0085, U+2028 and U+2029 in readers that take them for line
    ends; a lone surrogate has no UTF-8 form.
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
