"""What a client may say about its stream: format, types, heartbeat, and where to begin."""

import re
import time
from typing import cast

from multidict import istr

from gateway.config.catalog import Match
from gateway.config.model.units import parse_duration
from gateway.core.errors import BadRequest
from gateway.core.event import MAX_TIMESTAMP, EventId, parse_time
from gateway.core.sse import Format
from gateway.http.request import Ask
from gateway.hub.replay import NOW, Start
from gateway.hub.subscription import Subscription
from gateway.streams.quotas.limits import MAX_CLIENT
from gateway.streams.short_heartbeats import USUAL, HeartbeatOptions

_LAST_EVENT_ID = istr("Last-Event-ID")  # quicker to look up than text

RESUME_NAMES = ("lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent")
"""Query names under which polyfills send the last event id."""

OWN_NAMES = (*RESUME_NAMES, "format", "types", "last", "since", "heartbeat", "client")
"""Query names that say how a stream is wanted, and nothing about who wants what."""

_UNIX = re.compile(r"[1-9][0-9]{8,13}", re.ASCII)
_BLANK_ZONE = re.compile(r"(.*[T ][0-9:.,]+) ([0-9]{2}:?[0-9]{2})", re.ASCII | re.IGNORECASE)

MAX_LAST = 100_000
"""Most events that ``last=N`` may ask for."""

MAX_TYPES = 100
"""Most names in ``types=``."""


def subscription(ask: Ask, matches: tuple[Match, ...]) -> Subscription:
    """Return what the stream follows. Raises BadRequest."""
    if not ask.query:
        return Subscription.of(matches, chunked=ask.chunked)
    format = _choice(ask, "format", ("envelope", "data", "message"))
    types = frozenset(
        name.strip() for value in ask.query.getall("types", ()) for name in value.split(",") if name.strip()
    )
    if len(types) > MAX_TYPES:
        raise BadRequest(f"types= names more than {MAX_TYPES} types", code="bad_query")
    return Subscription.of(matches, cast(Format | None, format), types or None, chunked=ask.chunked)


def client(ask: Ask) -> str | None:
    """Return what the client calls itself. Raises BadRequest."""
    named = ask.query.get("client") if ask.query else None
    if named is not None and not 1 <= len(named) <= MAX_CLIENT:
        raise BadRequest(f"client= must have 1 to {MAX_CLIENT} characters", code="bad_query")
    return named


def heartbeat(ask: Ask) -> HeartbeatOptions:
    """Return how the client wants its heartbeats. Raises BadRequest.

    At most one form and one interval, as a list (``event,5s``) or in two parameters.
    """
    if not ask.query or "heartbeat" not in ask.query:
        return USUAL
    form: str | None = None
    interval: float | None = None
    for word in ",".join(ask.query.getall("heartbeat")).split(","):
        word = word.strip()
        if form is None and word in ("comment", "event"):
            form = word
        elif interval is None and word not in ("comment", "event"):
            try:
                interval = parse_duration(word)
            except ValueError:
                raise _bad_heartbeat() from None
        else:
            raise _bad_heartbeat()
    return HeartbeatOptions(form == "event", interval)


def _bad_heartbeat() -> BadRequest:
    return BadRequest(
        "heartbeat= must be comment or event, a duration (5s), or one of each (event,5s)", code="bad_query"
    )


def start(ask: Ask) -> Start:
    """Return where the stream begins. Raises BadRequest."""
    given = _last_event_id(ask)
    if given:
        return Start(after=EventId.parse(given), resumes=True)
    if not ask.query:
        return NOW
    last, since = ask.query.get("last"), ask.query.get("since")
    if last is not None and since is not None:
        raise BadRequest("last= and since= exclude each other", code="bad_query")
    if last is not None:
        if not last.isascii() or not last.isdigit() or len(last) > 9 or int(last) > MAX_LAST:
            raise BadRequest(f"last= must be a number from 0 to {MAX_LAST}", code="bad_query")
        return Start(last=int(last))
    return Start(after=_since(since)) if since is not None else NOW


def resume_point(ask: Ask) -> EventId | None:
    """Return the id that a client resumes from; None where it gave none, or one that is no id."""
    given = _last_event_id(ask)
    return EventId.parse(given) if given else None


def _last_event_id(ask: Ask) -> str | None:
    # The header first: it is what the browser itself keeps; a query value may be from the first page view.
    given = ask.headers.get(_LAST_EVENT_ID)
    if not given and ask.query:
        given = next((ask.query[name] for name in RESUME_NAMES if ask.query.get(name)), None)
    return given.partition(",")[0].strip() if given else None  # a proxy may have doubled it: 5-0, 5-0


def _since(text: str) -> EventId:
    """Return the id before everything that ``since=`` asks for: an id, a time, or a duration ago.

    A whole number is unix seconds up to 11 digits, and milliseconds from 12 on: the other reading would be
    a time before 1973, or after the year 5138.
    """
    id = EventId.parse(text)
    if id is not None:
        return id
    try:
        return EventId.before(round(time.time() * 1000 - parse_duration(text) * 1000))
    except ValueError:
        pass
    try:
        return EventId.before(max(0, _unix_ms(text)))
    except ValueError:
        raise BadRequest(
            "since= must be an event id, a time (2026-01-31T12:00:00Z, or unix milliseconds as in timestamp)"
            " or a duration (15m)",
            code="bad_query",
        ) from None


def _unix_ms(text: str) -> int:
    """Return a time in unix milliseconds. Raises ValueError."""
    if _UNIX.fullmatch(text):
        number = int(text) * (1000 if len(text) < 12 else 1)
        if number >= MAX_TIMESTAMP:
            raise ValueError(text)
        return number
    # A + that was not written as %2B arrives as a blank.
    return parse_time(_BLANK_ZONE.sub(r"\1+\2", text))


def _choice(ask: Ask, name: str, allowed: tuple[str, ...]) -> str | None:
    value = ask.query.get(name)
    if value is not None and value not in allowed:
        raise BadRequest(f"{name}= must be {' or '.join(allowed)}", code="bad_query")
    return value
