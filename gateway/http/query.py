"""Parses the options of a stream: format, types, heartbeat, client name, and where to begin."""

import re
import time
from typing import cast

from multidict import istr

from gateway.config.channel_catalog import ChannelMatch
from gateway.config.model.value_types import parse_duration
from gateway.core.errors import BadRequest
from gateway.core.event import MAX_TIMESTAMP_MS, EventId, parse_iso8601_ms
from gateway.core.sse import StreamFormat
from gateway.http.request import StreamRequest
from gateway.hub.replay import FROM_NOW, ResumePoint
from gateway.hub.subscription import Subscription
from gateway.streams.quotas.client_limits import MAX_CLIENT_CHARS
from gateway.streams.short_heartbeats import DEFAULT_HEARTBEAT, HeartbeatOptions

_LAST_EVENT_ID = istr("Last-Event-ID")  # quicker to look up than text

LAST_EVENT_ID_NAMES = ("lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent")
"""Query names under which polyfills send the last event id."""

STREAM_OPTION_NAMES = (*LAST_EVENT_ID_NAMES, "format", "types", "last", "since", "heartbeat", "client")
"""Query names of a stream's options, which do not concern its access."""

_UNIX_TIME = re.compile(r"[1-9][0-9]{8,13}", re.ASCII)
_BLANK_ZONE = re.compile(r"(.*[T ][0-9:.,]+) ([0-9]{2}:?[0-9]{2})", re.ASCII | re.IGNORECASE)

MAX_LAST_EVENTS = 100_000
"""Most events that ``last=N`` may request."""

MAX_TYPES = 100
"""Most names in ``types=``."""


def parse_subscription(request: StreamRequest, matches: tuple[ChannelMatch, ...]) -> Subscription:
    """Return the subscription that a request is for. Raises BadRequest."""
    if not request.query:
        return Subscription.of(matches, chunked=request.is_chunked)
    format = request.query.get("format")
    if format not in (None, "envelope", "data", "message"):
        raise BadRequest("format= must be envelope or data or message", code="bad_query")
    types = frozenset(
        name.strip()
        for value in request.query.getall("types", ())
        for name in value.split(",")
        if name.strip()
    )
    if len(types) > MAX_TYPES:
        raise BadRequest(f"types= names more than {MAX_TYPES} types", code="bad_query")
    return Subscription.of(
        matches, cast(StreamFormat | None, format), types or None, chunked=request.is_chunked
    )


def parse_client_name(request: StreamRequest) -> str | None:
    """Return the client's name for itself (``client=``). Raises BadRequest."""
    name = request.query.get("client") if request.query else None
    if name is not None and not 1 <= len(name) <= MAX_CLIENT_CHARS:
        raise BadRequest(f"client= must have 1 to {MAX_CLIENT_CHARS} characters", code="bad_query")
    return name


def parse_heartbeat(request: StreamRequest) -> HeartbeatOptions:
    """Return the heartbeat options of a request. Raises BadRequest.

    At most one form and one interval, as a list (``event,5s``) or in two parameters.
    """
    if not request.query or "heartbeat" not in request.query:
        return DEFAULT_HEARTBEAT
    form: str | None = None
    interval: float | None = None
    for word in ",".join(request.query.getall("heartbeat")).split(","):
        word = word.strip()
        if form is None and word in ("comment", "event"):
            form = word
        elif interval is None and word not in ("comment", "event"):
            try:
                interval = parse_duration(word)
            except ValueError:
                raise _heartbeat_error() from None
        else:
            raise _heartbeat_error()
    return HeartbeatOptions(form == "event", interval)


def _heartbeat_error() -> BadRequest:
    return BadRequest(
        "heartbeat= must be comment or event, a duration (5s), or one of each (event,5s)", code="bad_query"
    )


def parse_resume_point(request: StreamRequest) -> ResumePoint:
    """Return where the stream begins. Raises BadRequest."""
    text = _raw_last_event_id(request)
    if text:
        return ResumePoint(after=EventId.parse(text), has_last_event_id=True)
    if not request.query:
        return FROM_NOW
    last, since = request.query.get("last"), request.query.get("since")
    if last is not None and since is not None:
        raise BadRequest("last= and since= exclude each other", code="bad_query")
    if last is not None:
        if not last.isascii() or not last.isdigit() or len(last) > 9 or int(last) > MAX_LAST_EVENTS:
            raise BadRequest(f"last= must be a number from 0 to {MAX_LAST_EVENTS}", code="bad_query")
        return ResumePoint(last=int(last))
    return ResumePoint(after=_parse_since(since)) if since is not None else FROM_NOW


def parse_last_event_id(request: StreamRequest) -> EventId | None:
    """Return the id that a client resumes from; None without one, or if it is invalid."""
    text = _raw_last_event_id(request)
    return EventId.parse(text) if text else None


def _raw_last_event_id(request: StreamRequest) -> str | None:
    # The header first: the browser keeps it up to date, a query value may be from the first page view.
    given = request.headers.get(_LAST_EVENT_ID)
    if not given and request.query:
        given = next((request.query[name] for name in LAST_EVENT_ID_NAMES if request.query.get(name)), None)
    return given.partition(",")[0].strip() if given else None  # a proxy may have doubled it: 5-0, 5-0


def _parse_since(text: str) -> EventId:
    """Return the id after which ``since=`` begins. It is an id, a time, or a duration before now.

    A whole number is unix seconds up to 11 digits, and milliseconds from 12 on: the other reading would be
    a time before 1973, or after the year 5138.
    """
    id = EventId.parse(text)
    if id is not None:
        return id
    try:
        return EventId.last_before_ms(round(time.time() * 1000 - parse_duration(text) * 1000))
    except ValueError:
        pass
    try:
        return EventId.last_before_ms(max(0, _parse_unix_ms(text)))
    except ValueError:
        raise BadRequest(
            "since= must be an event id, a time (2026-01-31T12:00:00Z, or unix milliseconds as in timestamp)"
            " or a duration (15m)",
            code="bad_query",
        ) from None


def _parse_unix_ms(text: str) -> int:
    """Return a time in unix milliseconds. Raises ValueError."""
    if _UNIX_TIME.fullmatch(text):
        number = int(text) * (1000 if len(text) < 12 else 1)
        if number >= MAX_TIMESTAMP_MS:
            raise ValueError(text)
        return number
    # A + that was not encoded as %2B arrives as a blank.
    return parse_iso8601_ms(_BLANK_ZONE.sub(r"\1+\2", text))
