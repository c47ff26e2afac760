"""``GET /events``: a request to a stream, or to a reason why not."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import structlog
from aiohttp import hdrs, web

from gateway.config.catalog import Catalog, Match
from gateway.config.units import parse_duration
from gateway.errors import BadRequest, GatewayError, NotFound, Unavailable
from gateway.event import EventId
from gateway.http.auth import Authenticator, authorize
from gateway.http.channels import channel_names
from gateway.http.cors import Cors
from gateway.http.responses import error_response
from gateway.hub.replay import Opening, Start
from gateway.hub.subscription import Subscription
from gateway.metrics import Metrics
from gateway.sse import CONTENT_TYPE, Format, control_block
from gateway.stream.streams import Full, Streams
from gateway.stream.takeover import take_over

log = structlog.get_logger("gateway.http")

HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: f"{CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}

RESUME_NAMES = ("lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent")
"""Query names under which polyfills send the last event id."""

MAX_LAST = 100_000
"""Most events that ``last=N`` may ask for."""

MAX_LOGGED = 200
"""Characters of a client's own words that a log line holds."""

MAX_TYPES = 100
"""Most names in ``types=``."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """The handlers of ``/events`` and ``/events/{channel}``."""

    catalog: Catalog
    streams: Streams
    cors: Cors
    authenticator: Authenticator
    metrics: Metrics
    channels_per_stream: int

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream; refusals that can never work raise, those that may pass end a stream politely."""
        try:
            return await self._open(request)
        except (Full, Unavailable) as error:
            self.metrics.refused.labels(error.code).inc()
            return self._come_back(error)
        except GatewayError as error:
            self.metrics.refused.labels(error.code).inc()
            log.info(
                "stream_refused",
                status=error.status,
                code=error.code,
                reason=error.message,
                path=request.path[:MAX_LOGGED],
                origin=request.headers.get(hdrs.ORIGIN, "")[:MAX_LOGGED] or None,
            )
            return _last(error_response(error))

    async def _open(self, request: web.Request) -> web.StreamResponse:
        # CORS before auth, so that a page always learns why; auth before anything costs memory.
        self.cors.check(request)
        matches = self._matches(request)
        claims = self.authenticator.claims(request.headers.get(hdrs.AUTHORIZATION))
        authorize(matches, claims)
        subscription = _subscription(request, matches)
        start = _start(request)
        heartbeat_events = _choice(request, "heartbeat", ("comment", "event")) == "event"
        if request.method == hdrs.METH_HEAD:
            return web.Response(headers=HEADERS)
        with self.streams.reserve(subscription) as place:
            opening = await self.streams.opening(subscription, start)
            first = self._first(place.connection, channel_names(request), opening)
            response, stream = await take_over(
                request,
                HEADERS,
                first,
                lambda: place.take(opening, heartbeat_events=heartbeat_events),
            )
            if stream is not None:
                self.streams.begin(stream, opening, len(subscription.frame(first)))
                log.info(
                    "stream_opened",
                    connection=place.connection,
                    channels=subscription.channels,
                    resume=opening.resume,
                    client=request.remote,
                )
        return response

    def _matches(self, request: web.Request) -> tuple[Match, ...]:
        names = channel_names(request)
        if not names:
            raise BadRequest("no channel: ask for /events/{channel} or /events?channel=…", code="no_channel")
        if len(names) > self.channels_per_stream:
            raise BadRequest(
                f"{len(names)} channels; limits.channels_per_stream is {self.channels_per_stream}",
                code="too_many_channels",
            )
        found = []
        for name in names:
            match = self.catalog.resolve(name)
            if match is None:
                raise NotFound(f"there is no channel {name[:200]!r}", code="unknown_channel")
            found.append(match)
        return tuple(found)

    def _first(self, connection: str, channels: tuple[str, ...], opening: Opening) -> bytes:
        data = {"connection": connection, "channels": channels, "resume": opening.resume}
        retry = self.streams.retry_ms(jitter=False)
        return control_block("stream.open", data, id=opening.id, retry=retry) + opening.gaps

    def _come_back(self, error: GatewayError) -> web.Response:
        # A browser gives up for good on any status but 200, so overload is a stream that ends at once.
        return _last(web.Response(body=self.streams.close_block(error.code), headers=HEADERS))


def _last(response: web.Response) -> web.Response:
    """Let an answer be its connection's last: a herd of refused clients must not hold descriptors."""
    response.force_close()
    return response


def _subscription(request: web.Request, matches: tuple[Match, ...]) -> Subscription:
    format = _choice(request, "format", ("envelope", "data"))
    types = frozenset(
        name.strip()
        for value in request.query.getall("types", ())
        for name in value.split(",")
        if name.strip()
    )
    if len(types) > MAX_TYPES:
        raise BadRequest(f"types= names more than {MAX_TYPES} types", code="bad_query")
    return Subscription(
        # In one order, so that a=…&b=… and b=…&a=… share an audience.
        matches=tuple(sorted(matches, key=lambda match: match.name)),
        format=cast(Format | None, format),
        types=types or None,
        chunked=request.version >= (1, 1),
    )


def _start(request: web.Request) -> Start:
    # The header first: it is what the browser itself keeps; a query value may be from the first page view.
    given = request.headers.get("Last-Event-ID") or next(
        (request.query[name] for name in RESUME_NAMES if request.query.get(name)), None
    )
    if given:
        return Start(after=EventId.parse(given.strip()), resumes=True)
    last, since = request.query.get("last"), request.query.get("since")
    if last is not None and since is not None:
        raise BadRequest("last= and since= exclude each other", code="bad_query")
    if last is not None:
        if not last.isascii() or not last.isdigit() or len(last) > 9 or int(last) > MAX_LAST:
            raise BadRequest(f"last= must be a number from 0 to {MAX_LAST}", code="bad_query")
        return Start(last=int(last))
    return Start(after=_since(since)) if since is not None else Start()


def _since(text: str) -> EventId:
    """Return the id before everything that ``since=`` (an id, an ISO time, a duration) asks for."""
    id = EventId.parse(text)
    if id is not None:
        return id
    try:
        return EventId.before(round(time.time() * 1000 - parse_duration(text) * 1000))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(
            "since= must be an event id, an ISO time (2026-01-31T12:00:00Z) or a duration (15m)",
            code="bad_query",
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return EventId.before(max(0, round(moment.timestamp() * 1000)))


def _choice(request: web.Request, name: str, allowed: tuple[str, ...]) -> str | None:
    value = request.query.get(name)
    if value is not None and value not in allowed:
        raise BadRequest(f"{name}= must be {' or '.join(allowed)}", code="bad_query")
    return value
