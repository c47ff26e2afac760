"""Encodes events as text/event-stream (WHATWG HTML §9.2.5). Pure.

Rules learned from real clients (each has a test):

- The field order is ``retry``, ``event``, ``data``…, ``id``. The id is last because several clients adopt
  the id of an event that was cut off in the middle.
- Lines end with LF, and one blank line ends an event; a second one makes some clients dispatch an
  empty event.
- Data is split on CR, LF and CRLF only; ``str.splitlines`` would also split on U+2028.
- The heartbeat is a comment line without a blank line after it, for the same reason.
- An envelope is one line for every parser, including those that split at U+2028, U+2029 and U+0085
  (Python's ``str.splitlines``) and those that parse each ``data:`` line on its own.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from gateway.core.event import GAP_EVENT_TYPE, Event, EventId

StreamFormat = Literal["envelope", "data", "message"]
PayloadKind = Literal["json", "text", "envelope"]

EVENT_STREAM_CONTENT_TYPE = "text/event-stream"
HEARTBEAT_COMMENT = b":\n"
LAST_CHUNK = b"0\r\n\r\n"

_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_ENDS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")
# In UTF-8, whose other characters never contain these bytes.
_LINE_SEPARATOR_ESCAPES = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\u2028\u2029\x85")
_json = msgspec.json.Encoder()

# A template instead of a JSON encoder: one for each connect (storm).
_OPEN_FRAME = (
    b"retry: %d\nevent: stream.open\n"
    b'data: {"connection":"%b","channels":%b,"resume":"%b","heartbeat":%d%b}\n%b\n'
)

_CONTROL_CHARS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def is_valid_last_event_id(last_id: str) -> bool:
    """Tell whether an id may be sent in a header: without control characters (RFC 9110 §5.5)."""
    return _CONTROL_CHARS.search(last_id) is None


def encode_frame(
    data: bytes,
    *,
    event: str | None = None,
    id: EventId | None = None,
    retry_ms: int | None = None,
) -> bytes:
    """Return one event as bytes. ``event`` must be checked by `gateway.core.event.client_event_type`.

    ``retry_ms`` is the reconnect delay in milliseconds.
    """
    parts: list[bytes] = []
    if retry_ms is not None:
        parts.append(b"retry: %d\n" % retry_ms)
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


def encode_event_frame(event: Event, format: StreamFormat, kind: PayloadKind) -> bytes:
    """Return the frame of an event in the client's format.

    ``message`` is the envelope without an ``event`` field, for clients that cannot listen by type. ``data``
    is the payload alone, with a ``data`` line for each of its lines. In an envelope, a JSON payload keeps its
    bytes except for line ends (`single_line_json`): re-encoding would change big integers and NaN.
    """
    data = event.payload if format == "data" else encode_envelope(event, kind)
    type = None if format == "message" else event.type
    return encode_frame(data, event=type, id=event.id if event.is_retained else None)


def encode_envelope(event: Event, kind: PayloadKind) -> bytes:
    """Return ``{channel, id, type, timestamp, payload}`` as JSON; ``id`` is null without history."""
    payload = _json.encode(event.payload.decode()) if kind == "text" else event.payload
    return single_line_json(
        b'{"channel":%b,"id":%b,"type":%b,"timestamp":%d,"payload":%b}'
        % (
            _json.encode(event.channel),
            b'"%d-%d"' % event.id if event.is_retained else b"null",
            _json.encode(event.type),
            event.timestamp_ms,
            payload,
        )
    )


def single_line_json(json: bytes) -> bytes:
    """Return equal JSON in which no parser finds a line end.

    In JSON, CR and LF can only be between tokens, and the three other characters only inside strings
    (RFC 8259 §2, §7). ``json`` must be valid UTF-8.
    """
    if b"\n" in json or b"\r" in json:
        json = json.translate(_LINE_ENDS_TO_SPACES)
    if not json.isascii() and (b"\xe2\x80" in json or b"\xc2\x85" in json):
        for mark, escape in _LINE_SEPARATOR_ESCAPES:
            json = json.replace(mark, escape)
    return json


def encode_control_frame(
    event: str, data: Mapping[str, object], *, id: EventId | None = None, retry_ms: int | None = None
) -> bytes:
    """Return the frame of an event of the gateway itself, such as ``stream.close``."""
    return encode_frame(_json.encode(data), event=event, id=id, retry_ms=retry_ms)


def encode_open_frame(
    connection: str,
    channels: Sequence[str],
    resume: str,
    *,
    id: EventId | None,
    retry_ms: int,
    heartbeat_ms: int,
    extra_members: bytes = b"",
) -> bytes:
    """Return the ``stream.open`` frame. ``connection`` and ``resume`` must be ASCII without JSON escapes.

    ``extra_members`` are further members of the JSON object, each after a comma.
    """
    return _OPEN_FRAME % (
        retry_ms,
        connection.encode(),
        _json.encode(channels),
        resume.encode(),
        heartbeat_ms,
        extra_members,
        b"" if id is None else b"id: %d-%d\n" % id,
    )


def encode_gap_frame(
    channel: str,
    reason: str,
    *,
    after: EventId | None,
    oldest: EventId | None,
    id: EventId | None = None,
    missing_count: int | None = None,
) -> bytes:
    """Return a ``stream.gap``: events of ``channel`` after ``after`` and before ``oldest`` may be missing.

    ``missing_count`` is their number, if it is known.
    """
    members: dict[str, object] = {
        "channel": channel,
        "reason": reason,
        "after": None if after is None else str(after),
        "oldest": None if oldest is None else str(oldest),
    }
    return encode_control_frame(
        GAP_EVENT_TYPE, members if missing_count is None else members | {"missing": missing_count}, id=id
    )


def encode_http_chunk(data: bytes) -> bytes:
    """Return ``data``, which must not be empty, as one chunk of HTTP/1.1 chunked coding (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
