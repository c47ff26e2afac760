"""``GET /events``: decides about requests for streams, and opens them.

Requests arrive by two paths, aiohttp's handlers and the fast path; `SubscribeHandler.open_stream` is the one
decision for both. The try-it panel skips it and shares the rest: a `StreamSlot`, which is prepared, and
`respond_with_stream`.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
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
from gateway.config.template import invalid_channel_name_reason
from gateway.core.errors import BadRequest, GatewayError, NotFound, Overloaded, TooManyRequests, Unavailable
from gateway.core.sse import EVENT_STREAM_CONTENT_TYPE
from gateway.http import query
from gateway.http.cors import CorsPolicy
from gateway.http.paths import EVENTS_PATH
from gateway.http.refusal_log import RefusalLog
from gateway.http.request import RequestParser, StreamRequest
from gateway.http.responses import RawResponse, encode_head, raw_error_response
from gateway.hub.replay import ResumePoint, StreamStart
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.streams.connection import StreamConnection
from gateway.streams.quotas.address_quotas import AddressRateExceeded
from gateway.streams.quotas.client_address import address_key
from gateway.streams.quotas.client_limits import ClientLimits
from gateway.streams.registry import StreamRegistry, StreamSlot
from gateway.streams.upgrade import take_over

log = structlog.get_logger("gateway.http")

STREAM_HEADERS: Mapping[str, str] = {
    hdrs.CONTENT_TYPE: f"{EVENT_STREAM_CONTENT_TYPE}; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # nginx would buffer the stream
}

STREAM_HEADERS_FOR_PROXIES: Mapping[str, str] = {**STREAM_HEADERS, hdrs.CONNECTION: "close"}
"""For a proxy, which may keep a pool of connections: a stream's end is its connection's (RFC 9112 §9.6).

Not for a client itself: with this header, Node's fetch takes a broken connection for the end of the stream,
and clients that reconnect only after errors (fetch-event-source) would stay away: docs/decisions/0019.
"""

_CHUNKED_HEADER: Mapping[str, str] = {hdrs.TRANSFER_ENCODING: "chunked"}
_CHUNKED_STREAM_HEADERS: Mapping[str, str] = {**STREAM_HEADERS, **_CHUNKED_HEADER}
_CHUNKED_STREAM_HEADERS_FOR_PROXIES: Mapping[str, str] = {**STREAM_HEADERS_FOR_PROXIES, **_CHUNKED_HEADER}

_LOGGABLE_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}", re.ASCII)
"""Query names that the log may quote: a longer or stranger one may be a misplaced secret."""

MAX_LOGGED_UNKNOWN_NAMES = 3
"""Most unknown query names of one request that are logged."""

MAX_LOGGED_CHARS = 200
"""Characters of a client's own words that a log line quotes."""


class RequestCheck(msgspec.Struct, frozen=True):
    """What a request is for, and what its grant will be checked with."""

    matches: tuple[ChannelMatch, ...]
    auth_request: AuthRequest | None
    """The question to the authenticator; None if all channels are public."""
    revocation_count: int
    """How many revocations there were before the grant was looked up: later ones must be applied to it."""


@dataclass(slots=True)
class SubscribeHandler:
    """Decides about requests for streams, and opens them."""

    parser: RequestParser
    catalog: ChannelCatalog
    streams: StreamRegistry
    cors: CorsPolicy
    authenticator: Authenticator
    limits: ClientLimits
    metrics: Metrics
    channels_per_stream: int
    recent_errors: RecentErrors
    base_path: str = ""
    """Prefix of the paths of streams."""
    unknown_name_throttle: LogThrottle = field(default_factory=LogThrottle)
    refusal_log: RefusalLog = field(init=False)
    request_prefix: bytes = field(init=False)
    """First bytes of most requests for streams."""

    def __post_init__(self) -> None:
        self.refusal_log = RefusalLog("stream", self.recent_errors)
        self.request_prefix = f"GET {self.base_path}{EVENTS_PATH}".encode()

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer a request that aiohttp routed here."""
        ask = self.parser.from_aiohttp(request)
        try:
            if ask.method == hdrs.METH_HEAD:
                await self._resolve_grant(self.check_request(ask))
                return web.Response(
                    headers={**STREAM_HEADERS, **self.cors.response_headers(ask, ask.channels)}
                )
            slot, start = await self.open_stream(ask)
            headers = STREAM_HEADERS_FOR_PROXIES if ask.is_proxied else STREAM_HEADERS
            return await respond_with_stream(
                request,
                slot,
                start,
                channels=ask.channels,
                headers={**headers, **self.cors.response_headers(ask, ask.channels)},
                on_open=lambda stream, sent_bytes: self._start_stream(ask, slot, stream, start, sent_bytes),
            )
        except GatewayError as error:
            response = self.refuse(ask, error).to_aiohttp()
            response.force_close()  # a herd of refused clients must not hold descriptors
            return response

    async def open_stream(
        self, request: StreamRequest, on_admitted: Callable[[], None] = lambda: None
    ) -> tuple[StreamSlot, StreamStart]:
        """Return a slot for the request's stream, and where the stream begins. The caller releases the slot.

        Waits only for a grant that is not cached, for quotas that nodes share, and for events that must be
        read from the log, so `run_eagerly` opens most streams without a task (row storm). ``on_admitted``
        is called once the stream counts in the limits. Raises GatewayError. Cancelling is safe.
        """
        check = self.check_request(request)
        grant = ANONYMOUS if check.auth_request is None else await self._resolve_grant(check)
        slot, resume_point = self._admit(request, check, grant)
        on_admitted()
        return slot, await slot.prepare(resume_point)

    def check_request(self, request: StreamRequest) -> RequestCheck:
        """Check rate, origin and channels of a request. Raises GatewayError."""
        # The rate first: no refusal may cost more than a stream.
        self.check_rate(request)
        if request.query and (unknown := request.unknown_query_names):
            self._log_unknown_names(unknown)
        # CORS before auth, so that a page can always read why it is refused.
        self.cors.check_origin(request, request.channels)
        matches = self._resolve_channels(request)
        auth_request = None if is_public(matches) else build_auth_request(request)
        return RequestCheck(matches, auth_request, self.authenticator.revocations.count)

    def check_rate(self, request: StreamRequest) -> None:
        """Count a request for a stream. Raises AddressRateExceeded if its address sends too many."""
        usage = request.caller.address_usage
        if usage is not None and usage.connect_rate is not None and not usage.connect_rate.try_acquire():
            raise AddressRateExceeded()

    def check_preflight_rate(self, request: StreamRequest) -> None:
        """Count a preflight. Raises TooManyRequests if its address sends too many.

        After a 429 a browser sends no request, and its page may try again.
        """
        if not self.limits.addresses.try_preflight(request.caller.address_usage):
            raise TooManyRequests(
                "preflights come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )

    async def _resolve_grant(self, check: RequestCheck) -> Grant:
        if check.auth_request is None:
            return ANONYMOUS
        grant = await self.authenticator.resolve(check.auth_request, check.matches)
        authorize(check.matches, grant)
        return grant

    def _admit(
        self, request: StreamRequest, check: RequestCheck, grant: Grant
    ) -> tuple[StreamSlot, ResumePoint]:
        subscription = query.parse_subscription(request, check.matches)
        start, heartbeat = query.parse_resume_point(request), query.parse_heartbeat(request)
        if start.last is not None and request.caller.address is not None:
            start = replace(start, address=address_key(request.caller.address))
        quota = self.limits.acquire(request.caller, grant, query.parse_client_name(request))
        if quota.client_id is not None and start.after is None and not start.has_last_event_id:
            start = replace(start, is_reconnect_without_id=self.limits.was_recently_served(quota))
        try:
            slot = self.streams.acquire_slot(subscription, quota, heartbeat=heartbeat)
        except BaseException:
            quota.release()
            raise
        slot.revocation_count = check.revocation_count
        return slot, start

    def open_on_transport(
        self,
        request: StreamRequest,
        slot: StreamSlot,
        stream_start: StreamStart,
        transport: asyncio.Transport,
    ) -> None:
        """Respond on a bare transport, with head and first blocks in one write."""
        frame = slot.subscription.frame(slot.first_blocks(request.channels, stream_start))
        stream = slot.create_connection(stream_start)
        transport.set_protocol(stream)
        stream.connection_made(transport)
        cors = self.cors.response_headers(request, request.channels)
        transport.write(encode_head(200, _framed_headers(request), cors) + frame)
        self._start_stream(request, slot, stream, stream_start, len(frame))

    def refuse(self, request: StreamRequest, error: GatewayError) -> RawResponse:
        """Return the response to a request that gets no stream, the last one of its connection.

        A lasting refusal is an HTTP status. A passing one is a stream that ends at once, because a browser
        never reconnects after any status but 200.
        """
        self.record_refusal(request, error)
        cors = self.cors.response_headers(request, request.channels)
        if isinstance(error, (Overloaded, Unavailable)):
            # Some clients forget their id with a stream that carries none.
            block = self.streams.close_block(error.code, query.parse_last_event_id(request))
            return RawResponse(200, {**STREAM_HEADERS, **cors}, block)
        answer = raw_error_response(error)
        return RawResponse(answer.status, {**answer.headers, **cors}, answer.body)

    def record_refusal(self, request: StreamRequest, error: GatewayError) -> None:
        """Count a refusal, and log each kind once a minute for each page or address."""
        self.metrics.refused.labels(error.code).inc()
        address = request.caller.address
        origin = request.headers.get(hdrs.ORIGIN, "")[:MAX_LOGGED_CHARS] or None
        is_of_page = error.code in ("origin_refused", "cors_refused")
        cause = origin if is_of_page else address and address_key(address)
        times = self.refusal_log.record(error, cause, origin=origin, client=address)
        if times is not None:
            log.info(
                "stream_refused",
                status=200 if isinstance(error, (Overloaded, Unavailable)) else error.status,
                code=error.code,
                reason=error.message,
                origin=origin,
                client=address,
                times=times,
            )

    def _log_unknown_names(self, names: list[str]) -> None:
        """Log each query name that nothing reads once a minute: its client expects an effect."""
        loggable = [
            name
            for name in names
            if _LOGGABLE_NAME.fullmatch(name) and not self.authenticator.uses_query_parameter(name)
        ]
        for name in loggable[:MAX_LOGGED_UNKNOWN_NAMES]:
            times = self.unknown_name_throttle.should_log(name)
            if times is not None:
                log.warning(
                    "query_name_unknown",
                    name=name,
                    meant=next(iter(get_close_matches(name.lower(), RESERVED_QUERY_NAMES, 1, 0.75)), None),
                    times=times,
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
            reason = revocations.match_since(slot.revocation_count, grant, channels, stream.origin)
            if reason is not None:
                stream.close(reason)
        if log.is_enabled_for(logging.INFO):
            log.info(
                "stream_opened",
                connection=stream.id,
                channels=stream.subscription.channels,
                resume=stream_start.resume,
                client=request.caller.address,
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
                # Without the name, which may be anything, even a misplaced token.
                which = f" (number {len(found) + 1} of {len(names)})" if len(names) > 1 else ""
                why = invalid_channel_name_reason(name)
                raise NotFound(
                    f"there is no such channel{which}" + (f": {why}" if why else ""), code="unknown_channel"
                )
            found.append(match)
        return tuple(found)


def build_auth_request(request: StreamRequest) -> AuthRequest:
    """Return what the authenticator needs of a request."""
    caller = request.caller
    return AuthRequest(
        request.channels,
        request.headers,
        request.query,
        request.uri,
        caller.address,
        None if caller.address_usage is None else caller.address_usage.address_key,
        request.method,
    )


async def respond_with_stream(
    request: web.Request,
    slot: StreamSlot,
    start: StreamStart,
    *,
    channels: Sequence[str],
    headers: Mapping[str, str],
    on_open: Callable[[StreamConnection, int], None],
) -> web.StreamResponse:
    """Respond with a stream to a request that aiohttp routed. Releases the slot. Cancelling is safe.

    ``channels`` are named in ``stream.open`` as they were requested. ``on_open`` gets the connection and
    how many bytes of body it was sent; it is not called if the client is gone.
    """
    with slot:
        first = slot.first_blocks(channels, start)
        response, stream = await take_over(request, headers, first, lambda: slot.create_connection(start))
        if stream is not None:
            on_open(stream, len(slot.subscription.frame(first)))
    return response


def _framed_headers(request: StreamRequest) -> Mapping[str, str]:
    if request.is_chunked:
        return _CHUNKED_STREAM_HEADERS_FOR_PROXIES if request.is_proxied else _CHUNKED_STREAM_HEADERS
    return STREAM_HEADERS_FOR_PROXIES if request.is_proxied else STREAM_HEADERS
