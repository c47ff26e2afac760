"""Events to bytes: the text/event-stream framing of WHATWG HTML §9.2.5, and nothing else. Pure.

Rules that real clients taught (each has a test):

- The field order is ``retry``, ``event``, ``data``…, ``id``. The id comes last because several
  clients adopt the id of an event that was torn off in the middle.
- Lines end with LF, and one blank line ends a block; a second one makes some clients fire an
  empty event.
- Data is split on CR, LF and CRLF and on nothing else: ``bytes.splitlines`` would be right by
  accident, ``str.splitlines`` would also split on U+2028.
- The heartbeat is a comment line without a blank line after it, for the same reason.
- An envelope is one line for every reader, including those that split at U+2028, U+2029 and U+0085
  (Python's ``str.splitlines``) and those that parse each ``data:`` line on its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from gateway.core.event import GAP, Event, EventId

Format = Literal["envelope", "data", "message"]
PayloadKind = Literal["json", "text", "envelope"]

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b":\n"
LAST_CHUNK = b"0\r\n\r\n"

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANKS = bytes.maketrans(b"\r\n", b"  ")
# In UTF-8, whose other characters never contain these bytes.
_SEPARATORS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\u2028\u2029\x85")
_json = msgspec.json.Encoder()

# Filled in by hand: a storm of connects makes thousands of it in a second.
_OPEN = (
    b"retry: %d\nevent: stream.open\n"
    b'data: {"connection":"%b","channels":%b,"resume":"%b","heartbeat":%d%b}\n%b\n'
)

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def can_be_sent(last_id: str) -> bool:
    """Tell whether a header may hold an id (RFC 9110 §5.5): the framing lets it have control characters."""
    return _CONTROL.search(last_id) is None


def block(
    data: bytes,
    *,
    event: str | None = None,
    id: EventId | None = None,
    retry: int | None = None,
) -> bytes:
    """Return one event as bytes. ``event`` must have passed `gateway.core.event.safe_type`.

    ``retry`` is the reconnect delay in milliseconds.
    """
    parts: list[bytes] = []
    if retry is not None:
        parts.append(b"retry: %d\n" % retry)
    if event is not None:
        parts.append(b"event: %b\n" % event.encode())
    if b"\n" in data or b"\r" in data:
        parts.extend(b"data: %b\n" % line for line in _LINE_END.split(data))
    else:
        parts.append(b"data: %b\n" % data)
    if id is not None:
        parts.append(b"id: %d-%d\n" % id)
    parts.append(b"\n")
    return b"".join(parts)


def event_block(event: Event, format: Format, kind: PayloadKind) -> bytes:
    """Return the block of an event of the log in the format that the client asked for.

    ``message`` is the envelope without an ``event`` field, for clients that cannot listen by type.
    ``data`` is the payload itself, on as many ``data`` lines as it has. In an envelope a JSON payload keeps
    its bytes, except for line ends (`one_line`): re-encoding would change big integers and NaN.
    """
    data = event.payload if format == "data" else envelope(event, kind)
    type = None if format == "message" else event.type
    return block(data, event=type, id=event.id if event.kept else None)


def envelope(event: Event, kind: PayloadKind) -> bytes:
    """Return ``{channel, id, type, timestamp, payload}`` as JSON bytes; ``id`` is null where none is."""
    payload = _json.encode(event.payload.decode()) if kind == "text" else event.payload
    return one_line(
        b'{"channel":%b,"id":%b,"type":%b,"timestamp":%d,"payload":%b}'
        % (
            _json.encode(event.channel),
            b'"%d-%d"' % event.id if event.kept else b"null",
            _json.encode(event.type),
            event.timestamp,
            payload,
        )
    )


def one_line(json: bytes) -> bytes:
    """Return a JSON text of equal value in which no reader finds the end of a line.

    CR and LF can only stand between the tokens of JSON, the three other characters only inside strings
    (RFC 8259 §2, §7). ``json`` must be valid UTF-8.
    """
    if b"\n" in json or b"\r" in json:
        json = json.translate(_BLANKS)
    if not json.isascii() and (b"\xe2\x80" in json or b"\xc2\x85" in json):
        for mark, escape in _SEPARATORS:
            json = json.replace(mark, escape)
    return json


def control_block(
    event: str, data: Mapping[str, object], *, id: EventId | None = None, retry: int | None = None
) -> bytes:
    """Return one of the gateway's own events (``stream.open``, ``stream.close``…)."""
    return block(_json.encode(data), event=event, id=id, retry=retry)


def open_block(
    connection: str,
    channels: Sequence[str],
    resume: str,
    *,
    id: EventId | None,
    retry: int,
    heartbeat: int,
    more: bytes = b"",
) -> bytes:
    """Return a stream's first block. ``connection`` must be plain ASCII, ``resume`` one of our own words.

    ``retry`` and ``heartbeat`` are in milliseconds; ``more`` are members of its object, each behind a comma.
    """
    return _OPEN % (
        retry,
        connection.encode(),
        _json.encode(channels),
        resume.encode(),
        heartbeat,
        more,
        b"" if id is None else b"id: %d-%d\n" % id,
    )


def gap_block(
    channel: str,
    reason: str,
    *,
    after: EventId | None,
    oldest: EventId | None,
    id: EventId | None = None,
    missing: int | None = None,
) -> bytes:
    """Return a ``stream.gap``: events of ``channel`` after ``after`` and before ``oldest`` may be missing.

    ``missing`` is how many, where that is known.
    """
    told: dict[str, object] = {
        "channel": channel,
        "reason": reason,
        "after": None if after is None else str(after),
        "oldest": None if oldest is None else str(oldest),
    }
    return control_block(GAP, told if missing is None else told | {"missing": missing}, id=id)


def chunk(data: bytes) -> bytes:
    """Return ``data`` as one chunk of HTTP/1.1 chunked coding (RFC 9112 §7.1); must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)
