"""``POST /streams/{connection}/ack``: a client's answer to a heartbeat, on whichever node it lands.

No credentials are asked for: the nonce was told on that stream alone. Whatever no node made is refused here,
before anybody else hears of it (`gateway.streams.acks.nonces`), and is no line in the log.
"""

from dataclasses import dataclass

import msgspec
from aiohttp import hdrs, web
from prometheus_client import Counter

from gateway.config.model.config import Config
from gateway.core.errors import BadRequest, Forbidden, GatewayError, TooManyRequests
from gateway.http.bodies import BodyReader
from gateway.http.cors import CorsPolicy
from gateway.http.request import StreamRequest
from gateway.http.responses import raw_error_response
from gateway.streams.acks.forwarder import AckForwarder
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.quotas.client_limits import ClientLimits

ACK_PATH = "/streams/{connection:[0-9a-f]{24}}/ack"

MAX_ACK_BYTES = 512
"""Bytes of an answer."""


class _AckBody(msgspec.Struct, frozen=True):
    nonce: str


@dataclass(slots=True)
class AckHandler:
    """The handler. ``bodies`` read at most `MAX_ACK_BYTES`."""

    tracker: AckTracker
    nonces: NonceSigner
    forwarder: AckForwarder
    cors: CorsPolicy
    limits: ClientLimits
    body_reader: BodyReader
    result_counter: Counter

    def apply(self, config: Config) -> None:
        """Take the deadline of a configuration."""
        self.body_reader.timeout_seconds = config.timeouts.request

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take an answer: 204, or 202 where it is told to the node that has the stream."""
        ask = self.cors.parse_request(request)
        try:
            result = await self._process(ask, request)
            response = web.Response(status=202 if result == "forwarded" else 204)
        except GatewayError as error:
            result = "refused"
            response = raw_error_response(error).to_aiohttp()
        self.result_counter.labels(result).inc()
        response.headers.update(self.cors.response_headers_for_any(ask))
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        if not self._is_from_proxy(ask):
            response.force_close()  # kept alive until the next one, each stream would be two connections
        return response

    async def _process(self, stream_request: StreamRequest, request: web.Request) -> str:
        caller = (
            stream_request.caller
            if stream_request.forwarded_for is None
            else self.limits.forwarded_caller(stream_request.caller, stream_request.forwarded_for)
        )
        if not self.limits.addresses.try_ack(caller.address_usage):
            raise TooManyRequests(
                "answers come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )
        self.cors.check_origin_for_any(stream_request)
        async with self.body_reader.read_whole(
            request, None if caller.address_usage is None else caller.address_usage.address_key
        ) as body:
            nonce = _parse_nonce(body)
        connection = request.match_info["connection"]
        number = self.nonces.verify(connection, nonce)
        if number is None:
            raise Forbidden("this nonce was not told on that stream", code="unknown_nonce")
        if self.tracker.acknowledge(connection, number):
            return "local"
        return "forwarded" if self.forwarder.forward(connection, number) else "late"

    def _is_from_proxy(self, request: StreamRequest) -> bool:
        address = request.caller.address
        return address is None or self.limits.proxies.is_trusted(address)


def _parse_nonce(body: bytes) -> str:
    """Return what a body holds: the nonce itself, or ``{"nonce": …}``. Raises BadRequest."""
    try:
        text = body.decode("ascii").strip()
        return msgspec.json.decode(text, type=_AckBody).nonce if text.startswith("{") else text
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise BadRequest('the body is no nonce, and no {"nonce": …}', code="bad_ack") from None
