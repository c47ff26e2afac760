"""``GET /events``: a request to a stream, or to a reason why not. One decision, whichever path it came on."""

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import msgspec
import structlog
from aiohttp import hdrs, web

from gateway.auth.authenticator import Authenticator
from gateway.auth.forward import Question
from gateway.auth.grant import NOBODY, Grant
from gateway.auth.rules import authorize, is_public
from gateway.config.catalog import Catalog, Match
from gateway.config.model.auth import OWN_QUERY
from gateway.config.template import why_no_name
from gateway.core.errors import BadRequest, GatewayError, NotFound, Overload, TooManyRequests, Unavailable
from gateway.core.sse import CONTENT_TYPE
from gateway.http import query
from gateway.http.cors import CorsPolicy
from gateway.http.paths import STREAMS, stream_path
from gateway.http.request import Ask
from gateway.http.responses import Answer, error_answer, head
from gateway.hub.replay import Opening, Start
from gateway.observability.log_throttle import Seldom
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import Refusal, Refusals
from gateway.streams.connection import Connection
from gateway.streams.quotas.addresses import unit
from gateway.streams.quotas.limits import Caller, Limits
from gateway.streams.quotas.peers import AddressTooFast
from gateway.streams.registry import Place, Streams
from gateway.streams.upgrade import take_over

log = structlog.get_logger("gateway.http")

HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: f"{CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}

HEADERS_TO_PROXIES: Mapping[str, str] = {**HEADERS, hdrs.CONNECTION: "close"}
"""To a proxy, which may keep a pool of connections: a stream's end is its connection's (RFC 9112 §9.6).

Not to a client itself: told so, Node's fetch takes a connection that breaks for the end of the stream, and
clients that come back after errors only (fetch-event-source) would stay away: docs/decisions/0019.
"""

_CHUNKED: Mapping[str, str] = {hdrs.TRANSFER_ENCODING: "chunked"}
_HEADERS_CHUNKED: Mapping[str, str] = {**HEADERS, **_CHUNKED}
_HEADERS_TO_PROXIES_CHUNKED: Mapping[str, str] = {**HEADERS_TO_PROXIES, **_CHUNKED}


def stream_headers(ask: Ask) -> Mapping[str, str]:
    """Return the headers of a stream, but for those of CORS and of its framing."""
    return HEADERS_TO_PROXIES if ask.is_proxied else HEADERS


def _framed_headers(ask: Ask) -> Mapping[str, str]:
    if not ask.chunked:
        return stream_headers(ask)
    return _HEADERS_TO_PROXIES_CHUNKED if ask.is_proxied else _HEADERS_CHUNKED


_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}", re.ASCII)
"""A query name that is one: what is longer or stranger may be a secret in the wrong place."""

MOST_UNKNOWN = 3
"""Unknown query names of one request that the log may tell."""

MAX_LOGGED = 200
"""Characters of a client's own words that a log line holds."""


class Wanted(msgspec.Struct, frozen=True):
    """What a request asks for, and who asks, as far as nobody else has to be asked about that."""

    matches: tuple[Match, ...]
    caller: Caller
    question: Question | None
    """What whoever decides is asked; None where all is public."""
    grant: Grant | None
    """None: somebody must be asked."""
    since: int
    """How many revocations there were when it was decided so far."""


@dataclass(slots=True)
class Subscribe:
    """Decides about requests for streams, and opens them."""

    catalog: Catalog
    streams: Streams
    cors: CorsPolicy
    authenticator: Authenticator
    limits: Limits
    metrics: Metrics
    channels_per_stream: int
    base_path: str = ""
    """In front of the paths of streams."""
    seldom: Seldom = field(default_factory=Seldom)
    refusals: Refusals = field(default_factory=Refusals)
    unknown_names: Seldom = field(default_factory=Seldom)
    path: re.Pattern[str] = field(init=False)
    """What the path of a stream matches."""
    start: bytes = field(init=False)
    """How a request for a stream usually begins."""

    def __post_init__(self) -> None:
        self.path = stream_path(self.base_path)
        self.start = f"GET {self.base_path}{STREAMS}".encode()

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream of a request that aiohttp routed here."""
        ask = Ask.of_request(request, self.catalog.resolve)
        try:
            wanted = self.want(ask)
            if ask.method == hdrs.METH_HEAD:
                authorize(wanted.matches, wanted.grant or await self._granted(wanted))
                return web.Response(headers={**HEADERS, **self.cors.headers(ask)})
            place, start = await self.admit_later(ask, wanted)
            with place:
                opening = await self.ready(place, start)
                first = place.first(ask.channels, opening)
                headers = {**stream_headers(ask), **self.cors.headers(ask)}
                response, stream = await take_over(request, headers, first, lambda: place.take(opening))
                if stream is not None:
                    self._begun(ask, place, stream, opening, len(place.subscription.frame(first)))
            return response
        except GatewayError as error:
            response = self.refuse(ask, error).response()
            response.force_close()  # a herd of refused clients must not hold descriptors
            return response

    def want(self, ask: Ask) -> Wanted:
        """Decide about a request as far as that needs no waiting. Raises GatewayError."""
        # Whoever asks too often is told first: no refusal may cost more than letting somebody in.
        caller = self.hurry(ask)
        if ask.query and (unknown := ask.unknown):
            self._note_unknown(unknown)
        # CORS before auth, so that a page always learns why.
        self.cors.check(ask)
        matches = self._matches(ask)
        since = self.authenticator.revocations.number
        if is_public(matches):
            return Wanted(matches, caller, None, NOBODY, since)
        question = self.question(ask)
        return Wanted(matches, caller, question, self.authenticator.at_once(question, matches), since)

    def hurry(self, ask: Ask) -> Caller:
        """Return whose request it is. Raises AddressTooFast where there are too many."""
        caller = self.caller(ask)
        peer = caller.peer
        if peer is not None and peer.rate is not None and not peer.rate.try_take():
            raise AddressTooFast()
        return caller

    def hurry_preflight(self, ask: Ask) -> None:
        """Count a preflight. Raises TooManyRequests where its address sends too many.

        It is 429: a browser that gets it sends no request, and its page may try again.
        """
        if not self.limits.peers.preflight(self.caller(ask).peer):
            raise TooManyRequests(
                "preflights come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )

    def caller(self, ask: Ask) -> Caller:
        """Return whose request it is."""
        forwarded = ask.forwarded
        return ask.caller if forwarded is None else self.limits.behind(ask.caller, forwarded)

    def question(self, ask: Ask) -> Question:
        """Return what whoever decides about a request is asked."""
        caller = self.caller(ask)
        whose = None if caller.peer is None else caller.peer.unit
        return Question(ask.channels, ask.headers, ask.query, ask.uri, caller.address, whose, ask.method)

    def admit(self, ask: Ask, wanted: Wanted, grant: Grant) -> tuple[Place, Start]:
        """Return a place for a stream, and where that begins.

        Raises GatewayError; release the place where no stream takes it.
        """
        if wanted.question is not None:
            authorize(wanted.matches, grant)
        subscription = query.subscription(ask, wanted.matches)
        start, heartbeat = query.start(ask), query.heartbeat(ask)
        if start.last is not None and wanted.caller.address is not None:
            start = replace(start, address=unit(wanted.caller.address))
        hold = self.limits.hold(wanted.caller, grant, query.client(ask))
        if hold.client is not None and start.after is None and not start.resumes:
            start = replace(start, is_return=self.limits.was_served(hold))
        try:
            place = self.streams.reserve(subscription, hold, heartbeat=heartbeat)
        except BaseException:
            hold.release()
            raise
        place.since = wanted.since
        return place, start

    async def admit_later(self, ask: Ask, wanted: Wanted) -> tuple[Place, Start]:
        """Ask who decides, and go on like `admit`. Cancelling is safe."""
        return self.admit(ask, wanted, wanted.grant or await self._granted(wanted))

    async def ready(self, place: Place, start: Start) -> Opening:
        """Ask other nodes and the log what a stream begins with.

        Raises GatewayError, and then releases the place. Cancelling is safe.
        """
        try:
            if place.hold.must_confirm:
                await place.hold.confirm(place.connection)
            return await self.streams.opening(place.subscription, start)
        except BaseException:
            place.release()
            raise

    async def _granted(self, wanted: Wanted) -> Grant:
        assert wanted.question is not None, "what is public needs nobody's word"
        return await self.authenticator.look(wanted.question, wanted.matches)

    def open(self, ask: Ask, place: Place, opening: Opening, transport: asyncio.Transport) -> None:
        """Answer on a bare transport, and let a stream have it. Releases the place."""
        with place:
            frame = place.subscription.frame(place.first(ask.channels, opening))
            stream = place.take(opening)
            transport.set_protocol(stream)
            stream.connection_made(transport)
            transport.write(head(200, _framed_headers(ask), self.cors.headers(ask)) + frame)
            self._begun(ask, place, stream, opening, len(frame))

    def refuse(self, ask: Ask, error: GatewayError) -> Answer:
        """Return the answer to a request that gets no stream, which must be its connection's last one.

        What can never work gets its status; what may pass is a stream that ends at once, because a browser
        gives up for good on any status but 200.
        """
        self.note_refusal(ask, error)
        cors = self.cors.headers(ask)
        if isinstance(error, (Overload, Unavailable)):
            # Some clients forget their id with a stream that has none.
            block = self.streams.close_block(error.code, query.resume_point(ask))
            return Answer(200, {**HEADERS, **cors}, block)
        answer = error_answer(error)
        return Answer(answer.status, {**answer.headers, **cors}, answer.body)

    def note_refusal(self, ask: Ask, error: GatewayError) -> None:
        """Count a refusal; the log tells each kind of it once a minute for each page or address."""
        self.metrics.refused.labels(error.code).inc()
        address = self.caller(ask).address
        origin = ask.headers.get(hdrs.ORIGIN, "")[:MAX_LOGGED] or None
        is_of_page = error.code in ("origin_refused", "cors_refused")
        whose = origin if is_of_page else address and unit(address)
        told = Refusal("stream", error.code, error.message, origin=origin, client=address)
        self.refusals.note(whose, told)
        count = self.seldom.tell((error.code, whose))
        if count is not None:
            log.info(
                "stream_refused",
                status=200 if isinstance(error, (Overload, Unavailable)) else error.status,
                code=error.code,
                reason=error.message,
                origin=origin,
                client=address,
                times=count,
            )

    def _note_unknown(self, names: list[str]) -> None:
        """Log each query name that nothing here reads once a minute: its client hopes for something."""
        told = [name for name in names if _WORD.fullmatch(name) and not self.authenticator.reads_query(name)]
        for name in told[:MOST_UNKNOWN]:
            count = self.unknown_names.tell(name)
            if count is not None:
                log.warning(
                    "query_name_unknown",
                    name=name,
                    meant=next(iter(get_close_matches(name.lower(), OWN_QUERY, 1, 0.75)), None),
                    times=count,
                    note="the gateway ignores it; docs/http.md lists the names that it knows",
                )

    def _begun(self, ask: Ask, place: Place, stream: Connection, opening: Opening, sent: int) -> None:
        stream.origin = self.cors.page(ask)
        self.streams.begin(stream, opening, sent)
        revocations = self.authenticator.revocations
        if place.since != revocations.number:
            grant, channels = stream.hold.grant, stream.subscription.declared
            why = revocations.hit(place.since, grant, channels, stream.origin)
            if why is not None:
                stream.end(why)
        if log.is_enabled_for(logging.INFO):
            log.info(
                "stream_opened",
                connection=stream.id,
                channels=stream.subscription.channels,
                resume=opening.resume,
                client=self.caller(ask).address,
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
                why = why_no_name(name)
                raise NotFound(
                    f"there is no such channel{which}" + (f": {why}" if why else ""), code="unknown_channel"
                )
            found.append(match)
        return tuple(found)
