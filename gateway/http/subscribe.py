"""``GET /events``: a request to a stream, or to a reason why not. One decision, whichever path it came on."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from aiohttp import hdrs, web

from gateway.config.catalog import Catalog, Match
from gateway.errors import BadRequest, GatewayError, NotFound, Unavailable
from gateway.http import query
from gateway.http.ask import Ask
from gateway.http.auth import Authenticator, authorize
from gateway.http.cors import CorsPolicy
from gateway.http.responses import Answer, error_answer, head
from gateway.hub.replay import Opening, Start
from gateway.metrics import Metrics
from gateway.sse import CONTENT_TYPE, open_block
from gateway.stream.connection import Connection
from gateway.stream.streams import Full, Place, Streams
from gateway.stream.takeover import take_over

log = structlog.get_logger("gateway.http")

HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: f"{CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}

_CHUNKED = {**HEADERS, hdrs.TRANSFER_ENCODING: "chunked"}

MAX_LOGGED = 200
"""Characters of a client's own words that a log line holds."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Decides about requests for streams, and opens them."""

    catalog: Catalog
    streams: Streams
    cors: CorsPolicy
    authenticator: Authenticator
    metrics: Metrics
    channels_per_stream: int

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream of a request that aiohttp routed here."""
        ask = Ask.of_request(request)
        try:
            if ask.method == hdrs.METH_HEAD:
                self.check(ask)
                return web.Response(headers={**HEADERS, **self.cors.headers(ask)})
            place, start = self.grant(ask)
            with place:
                opening = await self.streams.opening(place.subscription, start)
                first = self._first(ask, place, opening)
                headers = {**HEADERS, **self.cors.headers(ask)}
                response, stream = await take_over(request, headers, first, lambda: place.take(opening))
                if stream is not None:
                    self._begun(ask, stream, opening, len(place.subscription.frame(first)))
            return response
        except GatewayError as error:
            response = self.refuse(ask, error).response()
            response.force_close()  # a herd of refused clients must not hold descriptors
            return response

    def grant(self, ask: Ask) -> tuple[Place, Start]:
        """Decide about a request: a place for its stream, and where that begins.

        Raises GatewayError; release the place where no stream takes it.
        """
        matches = self.check(ask)
        subscription = query.subscription(ask, matches)
        start, heartbeat_events = query.start(ask), query.heartbeat_events(ask)
        return self.streams.reserve(subscription, heartbeat_events=heartbeat_events), start

    def check(self, ask: Ask) -> tuple[Match, ...]:
        """Check that a client may read what it names, and return that. Raises GatewayError."""
        # CORS before auth, so that a page always learns why; auth before anything costs memory.
        self.cors.check(ask)
        matches = self._matches(ask)
        authorize(matches, self.authenticator.claims(ask.headers.get(hdrs.AUTHORIZATION)))
        return matches

    def open(self, ask: Ask, place: Place, opening: Opening, transport: asyncio.Transport) -> None:
        """Answer on a bare transport, and let a stream have it. Releases the place."""
        with place:
            frame = place.subscription.frame(self._first(ask, place, opening))
            stream = place.take(opening)
            transport.set_protocol(stream)
            stream.connection_made(transport)
            transport.write(head(200, _CHUNKED if ask.chunked else HEADERS, self.cors.headers(ask)) + frame)
            self._begun(ask, stream, opening, len(frame))

    def _first(self, ask: Ask, place: Place, opening: Opening) -> bytes:
        retry = self.streams.retry_ms(jitter=False)
        block = open_block(place.connection, ask.channels, opening.resume, id=opening.id, retry=retry)
        return block + opening.gaps

    def refuse(self, ask: Ask, error: GatewayError) -> Answer:
        """Return the answer to a request that gets no stream, which must be its connection's last one.

        What can never work gets its status; what may pass is a stream that ends at once, because a browser
        gives up for good on any status but 200.
        """
        self.metrics.refused.labels(error.code).inc()
        cors = self.cors.headers(ask)
        if isinstance(error, (Full, Unavailable)):
            return Answer(200, {**HEADERS, **cors}, self.streams.close_block(error.code))
        log.info(
            "stream_refused",
            status=error.status,
            code=error.code,
            reason=error.message,
            origin=ask.headers.get(hdrs.ORIGIN, "")[:MAX_LOGGED] or None,
        )
        answer = error_answer(error)
        return Answer(answer.status, {**answer.headers, **cors}, answer.body)

    def _begun(self, ask: Ask, stream: Connection, opening: Opening, sent: int) -> None:
        self.streams.begin(stream, opening, sent)
        if log.is_enabled_for(logging.INFO):
            log.info(
                "stream_opened",
                connection=stream.id,
                channels=stream.subscription.channels,
                resume=opening.resume,
                client=ask.client,
            )

    def _matches(self, ask: Ask) -> tuple[Match, ...]:
        names = ask.channels
        if not names:
            raise BadRequest("no channel: ask for /events/{channel} or /events?channel=…", code="no_channel")
        if len(names) > self.channels_per_stream:
            raise BadRequest(
                f"{len(names)} channels; limits.channels_per_stream is {self.channels_per_stream}",
                code="too_many_channels",
            )
        found: list[Match] = []
        for name in names:
            match = self.catalog.resolve(name)
            if match is None:
                # Not its name: what leads nowhere may be anything, a token in the wrong place too.
                which = f" (number {len(found) + 1} of {len(names)})" if len(names) > 1 else ""
                raise NotFound(f"there is no such channel{which}", code="unknown_channel")
            found.append(match)
        return tuple(found)
