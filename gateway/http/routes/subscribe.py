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
from gateway.auth.forward import AuthRequest
from gateway.auth.grant import ANONYMOUS, Grant
from gateway.auth.rules import authorize, is_public
from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch
from gateway.config.model.auth import RESERVED_QUERY_NAMES
from gateway.config.model.config import Config
from gateway.config.template import invalid_channel_name_reason
from gateway.core.errors import BadRequest, GatewayError, NotFound, Overloaded, TooManyRequests, Unavailable
from gateway.core.sse import EVENT_STREAM_CONTENT_TYPE
from gateway.http import query
from gateway.http.cors import CorsPolicy
from gateway.http.paths import EVENTS_PATH, stream_path_pattern
from gateway.http.request import StreamRequest
from gateway.http.responses import RawResponse, encode_head, raw_error_response
from gateway.hub.replay import ResumePoint, StreamStart
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentError, RecentErrors
from gateway.streams.connection import StreamConnection
from gateway.streams.quotas.address_quotas import AddressRateExceeded
from gateway.streams.quotas.client_address import address_key
from gateway.streams.quotas.client_limits import Caller, ClientLimits
from gateway.streams.registry import StreamRegistry, StreamSlot
from gateway.streams.upgrade import take_over

log = structlog.get_logger("gateway.http")

STREAM_HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: f"{EVENT_STREAM_CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold the stream back
}

STREAM_HEADERS_FOR_PROXIES: Mapping[str, str] = {**STREAM_HEADERS, hdrs.CONNECTION: "close"}
"""To a proxy, which may keep a pool of connections: a stream's end is its connection's (RFC 9112 §9.6).

Not to a client itself: told so, Node's fetch takes a connection that breaks for the end of the stream, and
clients that come back after errors only (fetch-event-source) would stay away: docs/decisions/0019.
"""

_CHUNKED_HEADER: Mapping[str, str] = {hdrs.TRANSFER_ENCODING: "chunked"}
_CHUNKED_STREAM_HEADERS: Mapping[str, str] = {**STREAM_HEADERS, **_CHUNKED_HEADER}
_CHUNKED_STREAM_HEADERS_FOR_PROXIES: Mapping[str, str] = {**STREAM_HEADERS_FOR_PROXIES, **_CHUNKED_HEADER}


def stream_headers(request: StreamRequest) -> Mapping[str, str]:
    """Return the headers of a stream, but for those of CORS and of its framing."""
    return STREAM_HEADERS_FOR_PROXIES if request.is_proxied else STREAM_HEADERS


def _framed_headers(request: StreamRequest) -> Mapping[str, str]:
    if not request.is_chunked:
        return stream_headers(request)
    return _CHUNKED_STREAM_HEADERS_FOR_PROXIES if request.is_proxied else _CHUNKED_STREAM_HEADERS


_LOGGABLE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}", re.ASCII)
"""A query name that is one: what is longer or stranger may be a secret in the wrong place."""

MAX_LOGGED_UNKNOWN_NAMES = 3
"""Unknown query names of one request that the log may tell."""

MAX_LOGGED_CHARS = 200
"""Characters of a client's own words that a log line holds."""


class AccessCheck(msgspec.Struct, frozen=True):
    """What a request asks for, and who asks, as far as nobody else has to be asked about that."""

    matches: tuple[ChannelMatch, ...]
    caller: Caller
    auth_request: AuthRequest | None
    """What whoever decides is asked; None where all is public."""
    grant: Grant | None
    """None: somebody must be asked."""
    revocation_count: int
    """How many revocations there were when it was decided so far."""


@dataclass(slots=True)
class SubscribeHandler:
    """Decides about requests for streams, and opens them."""

    catalog: ChannelCatalog
    streams: StreamRegistry
    cors: CorsPolicy
    authenticator: Authenticator
    limits: ClientLimits
    metrics: Metrics
    channels_per_stream: int
    base_path: str = ""
    """In front of the paths of streams."""
    refusal_throttle: LogThrottle = field(default_factory=LogThrottle)
    recent_errors: RecentErrors = field(default_factory=RecentErrors)
    unknown_name_throttle: LogThrottle = field(default_factory=LogThrottle)
    path_pattern: re.Pattern[str] = field(init=False)
    """What the path of a stream matches."""
    request_prefix: bytes = field(init=False)
    """How a request for a stream usually begins."""

    def __post_init__(self) -> None:
        self.path_pattern = stream_path_pattern(self.base_path)
        self.request_prefix = f"GET {self.base_path}{EVENTS_PATH}".encode()

    def apply(self, config: Config) -> None:
        """Take the limits of a configuration."""
        self.channels_per_stream = config.limits.channels_per_stream

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Open the stream of a request that aiohttp routed here."""
        ask = StreamRequest.from_aiohttp_request(request, self.catalog.resolve)
        try:
            wanted = self.authorize(ask)
            if ask.method == hdrs.METH_HEAD:
                authorize(wanted.matches, wanted.grant or await self._resolve_grant(wanted))
                return web.Response(headers={**STREAM_HEADERS, **self.cors.response_headers(ask)})
            place, start = await self.authorize_and_admit(ask, wanted)
            with place:
                opening = await self.prepare(place, start)
                first = place.first_blocks(ask.channels, opening)
                headers = {**stream_headers(ask), **self.cors.response_headers(ask)}
                response, stream = await take_over(
                    request, headers, first, lambda: place.create_connection(opening)
                )
                if stream is not None:
                    self._start_stream(ask, place, stream, opening, len(place.subscription.frame(first)))
            return response
        except GatewayError as error:
            response = self.refuse(ask, error).to_aiohttp()
            response.force_close()  # a herd of refused clients must not hold descriptors
            return response

    def authorize(self, request: StreamRequest) -> AccessCheck:
        """Decide about a request as far as that needs no waiting. Raises GatewayError."""
        # Whoever asks too often is told first: no refusal may cost more than letting somebody in.
        caller = self.check_rate(request)
        if request.query and (unknown := request.unknown_query_names):
            self._log_unknown_names(unknown)
        # CORS before auth, so that a page always learns why.
        self.cors.check_origin(request)
        matches = self._resolve_channels(request)
        since = self.authenticator.revocations.count
        if is_public(matches):
            return AccessCheck(matches, caller, None, ANONYMOUS, since)
        question = self.build_auth_request(request)
        return AccessCheck(matches, caller, question, self.authenticator.try_cached(question, matches), since)

    def check_rate(self, request: StreamRequest) -> Caller:
        """Return whose request it is. Raises AddressTooFast where there are too many."""
        caller = self.resolve_caller(request)
        peer = caller.address_usage
        if peer is not None and peer.connect_rate is not None and not peer.connect_rate.try_acquire():
            raise AddressRateExceeded()
        return caller

    def check_preflight_rate(self, request: StreamRequest) -> None:
        """Count a preflight. Raises TooManyRequests where its address sends too many.

        It is 429: a browser that gets it sends no request, and its page may try again.
        """
        if not self.limits.addresses.try_preflight(self.resolve_caller(request).address_usage):
            raise TooManyRequests(
                "preflights come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )

    def resolve_caller(self, request: StreamRequest) -> Caller:
        """Return whose request it is."""
        forwarded = request.forwarded_for
        return (
            request.caller if forwarded is None else self.limits.forwarded_caller(request.caller, forwarded)
        )

    def build_auth_request(self, request: StreamRequest) -> AuthRequest:
        """Return what whoever decides about a request is asked."""
        caller = self.resolve_caller(request)
        whose = None if caller.address_usage is None else caller.address_usage.address_key
        return AuthRequest(
            request.channels,
            request.headers,
            request.query,
            request.uri,
            caller.address,
            whose,
            request.method,
        )

    def admit(
        self, request: StreamRequest, access: AccessCheck, grant: Grant
    ) -> tuple[StreamSlot, ResumePoint]:
        """Return a place for a stream, and where that begins.

        Raises GatewayError; release the place where no stream takes it.
        """
        if access.auth_request is not None:
            authorize(access.matches, grant)
        subscription = query.parse_subscription(request, access.matches)
        start, heartbeat = query.parse_resume_point(request), query.parse_heartbeat(request)
        if start.last is not None and access.caller.address is not None:
            start = replace(start, address=address_key(access.caller.address))
        hold = self.limits.acquire(access.caller, grant, query.parse_client_name(request))
        if hold.client_id is not None and start.after is None and not start.has_last_event_id:
            start = replace(start, is_reconnect_without_id=self.limits.was_recently_served(hold))
        try:
            place = self.streams.acquire_slot(subscription, hold, heartbeat=heartbeat)
        except BaseException:
            hold.release()
            raise
        place.revocation_count = access.revocation_count
        return place, start

    async def authorize_and_admit(
        self, request: StreamRequest, access: AccessCheck
    ) -> tuple[StreamSlot, ResumePoint]:
        """Ask who decides, and go on like `admit`. Cancelling is safe."""
        return self.admit(request, access, access.grant or await self._resolve_grant(access))

    async def prepare(self, slot: StreamSlot, resume_point: ResumePoint) -> StreamStart:
        """Ask other nodes and the log what a stream begins with.

        Raises GatewayError, and then releases the place. Cancelling is safe.
        """
        try:
            if slot.quota.needs_reservation:
                await slot.quota.reserve(slot.connection_id)
            return await self.streams.resolve_start(slot.subscription, resume_point)
        except BaseException:
            slot.release()
            raise

    async def _resolve_grant(self, access: AccessCheck) -> Grant:
        assert access.auth_request is not None, "what is public needs nobody's word"
        return await self.authenticator.resolve(access.auth_request, access.matches)

    def open_on_transport(
        self,
        request: StreamRequest,
        slot: StreamSlot,
        stream_start: StreamStart,
        transport: asyncio.Transport,
    ) -> None:
        """Answer on a bare transport, and let a stream have it. Releases the place."""
        with slot:
            frame = slot.subscription.frame(slot.first_blocks(request.channels, stream_start))
            stream = slot.create_connection(stream_start)
            transport.set_protocol(stream)
            stream.connection_made(transport)
            transport.write(
                encode_head(200, _framed_headers(request), self.cors.response_headers(request)) + frame
            )
            self._start_stream(request, slot, stream, stream_start, len(frame))

    def refuse(self, request: StreamRequest, error: GatewayError) -> RawResponse:
        """Return the answer to a request that gets no stream, which must be its connection's last one.

        What can never work gets its status; what may pass is a stream that ends at once, because a browser
        gives up for good on any status but 200.
        """
        self.record_refusal(request, error)
        cors = self.cors.response_headers(request)
        if isinstance(error, (Overloaded, Unavailable)):
            # Some clients forget their id with a stream that has none.
            block = self.streams.close_block(error.code, query.parse_last_event_id(request))
            return RawResponse(200, {**STREAM_HEADERS, **cors}, block)
        answer = raw_error_response(error)
        return RawResponse(answer.status, {**answer.headers, **cors}, answer.body)

    def record_refusal(self, request: StreamRequest, error: GatewayError) -> None:
        """Count a refusal; the log tells each kind of it once a minute for each page or address."""
        self.metrics.refused.labels(error.code).inc()
        address = self.resolve_caller(request).address
        origin = request.headers.get(hdrs.ORIGIN, "")[:MAX_LOGGED_CHARS] or None
        is_of_page = error.code in ("origin_refused", "cors_refused")
        whose = origin if is_of_page else address and address_key(address)
        told = RecentError("stream", error.code, error.message, origin=origin, client=address)
        self.recent_errors.record(whose, told)
        count = self.refusal_throttle.should_log((error.code, whose))
        if count is not None:
            log.info(
                "stream_refused",
                status=200 if isinstance(error, (Overloaded, Unavailable)) else error.status,
                code=error.code,
                reason=error.message,
                origin=origin,
                client=address,
                times=count,
            )

    def _log_unknown_names(self, names: list[str]) -> None:
        """Log each query name that nothing here reads once a minute: its client hopes for something."""
        told = [
            name
            for name in names
            if _LOGGABLE_NAME.fullmatch(name) and not self.authenticator.uses_query_parameter(name)
        ]
        for name in told[:MAX_LOGGED_UNKNOWN_NAMES]:
            count = self.unknown_name_throttle.should_log(name)
            if count is not None:
                log.warning(
                    "query_name_unknown",
                    name=name,
                    meant=next(iter(get_close_matches(name.lower(), RESERVED_QUERY_NAMES, 1, 0.75)), None),
                    times=count,
                    note="the gateway ignores it; docs/http.md lists the names that it knows",
                )

    def _start_stream(
        self,
        request: StreamRequest,
        slot: StreamSlot,
        stream: StreamConnection,
        stream_start: StreamStart,
        sent_bytes: int,
    ) -> None:
        stream.origin = self.cors.page_origin(request)
        self.streams.register(stream, stream_start, sent_bytes)
        revocations = self.authenticator.revocations
        if slot.revocation_count != revocations.count:
            grant, channels = stream.quota.grant, stream.subscription.followed
            why = revocations.match_since(slot.revocation_count, grant, channels, stream.origin)
            if why is not None:
                stream.close(why)
        if log.is_enabled_for(logging.INFO):
            log.info(
                "stream_opened",
                connection=stream.id,
                channels=stream.subscription.channels,
                resume=stream_start.resume,
                client=self.resolve_caller(request).address,
            )

    def _resolve_channels(self, request: StreamRequest) -> tuple[ChannelMatch, ...]:
        names = request.channels
        if not names:
            raise BadRequest("no channel: ask for /events/{channel} or /events?channel=…", code="no_channel")
        if len(names) > self.channels_per_stream:
            raise BadRequest(
                f"{len(names)} channels; limits.channels_per_stream is {self.channels_per_stream}",
                code="too_many_channels",
            )
        found: list[ChannelMatch] = []
        for name in names:
            match = self.catalog.resolve(name)
            if match is None:
                # Not its name: what leads nowhere may be anything, a token in the wrong place too.
                which = f" (number {len(found) + 1} of {len(names)})" if len(names) > 1 else ""
                why = invalid_channel_name_reason(name)
                raise NotFound(
                    f"there is no such channel{which}" + (f": {why}" if why else ""), code="unknown_channel"
                )
            found.append(match)
        return tuple(found)
