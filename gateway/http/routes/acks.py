"""``POST /streams/{connection}/ack``: a client's answer to a heartbeat, on any node.

It needs no credentials: the nonce was sent on that stream alone. A nonce that no node signed is refused here,
before other nodes see it (`gateway.streams.acks.nonces`), and is not logged.
"""

from dataclasses import dataclass

import msgspec
from aiohttp import hdrs, web
from prometheus_client import Counter

from gateway.core.errors import BadRequest, Forbidden, GatewayError, TooManyRequests
from gateway.http.bodies import BodyReader
from gateway.http.cors import ANY_CHANNEL, CorsPolicy
from gateway.http.request import RequestParser, StreamRequest
from gateway.http.responses import raw_error_response
from gateway.streams.acks.forwarder import AckForwarder
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.tracker import AckTracker
from gateway.streams.quotas.client_limits import ClientLimits

ACK_PATH = "/streams/{connection:[0-9a-f]{24}}/ack"

MAX_ACK_BYTES = 512
"""Longest answer, in bytes."""


class _AckBody(msgspec.Struct, frozen=True):
    nonce: str


@dataclass(slots=True)
class AckHandler:
    """Accepts answers to heartbeats. ``body_reader`` reads at most `MAX_ACK_BYTES`."""

    tracker: AckTracker
    nonces: NonceSigner
    forwarder: AckForwarder
    cors: CorsPolicy
    parser: RequestParser
    limits: ClientLimits
    body_reader: BodyReader
    result_counter: Counter

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Accept an answer: 204, or 202 if it is forwarded to the node that has the stream."""
        ask = self.parser.from_aiohttp(request)
        try:
            result = await self._process(ask, request)
            response = web.Response(status=202 if result == "forwarded" else 204)
        except GatewayError as error:
            result = "refused"
            response = raw_error_response(error).to_aiohttp()
        self.result_counter.labels(result).inc()
        response.headers.update(self.cors.response_headers(ask, ANY_CHANNEL))
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        if not self._is_from_proxy(ask):
            response.force_close()  # kept alive until the next one, each stream would be two connections
        return response

    async def _process(self, stream_request: StreamRequest, request: web.Request) -> str:
        usage = stream_request.caller.address_usage
        if not self.limits.addresses.try_ack(usage):
            raise TooManyRequests(
                "answers come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )
        self.cors.check_origin(stream_request, ANY_CHANNEL)
        client_key = None if usage is None else usage.address_key
        async with self.body_reader.read_whole(request, client_key) as body:
            nonce = _parse_nonce(body)
        connection = request.match_info["connection"]
        number = self.nonces.verify(connection, nonce)
        if number is None:
            raise Forbidden("this nonce was not sent on that stream", code="unknown_nonce")
        if self.tracker.acknowledge(connection, number):
            return "local"
        return "forwarded" if self.forwarder.forward(connection, number) else "late"

    def _is_from_proxy(self, request: StreamRequest) -> bool:
        address = request.peer.address
        return address is None or self.limits.proxies.is_trusted(address)


def _parse_nonce(body: bytes) -> str:
    """Return the nonce of a body: the bare text, or ``{"nonce": …}``. Raises BadRequest."""
    try:
        text = body.decode("ascii").strip()
        return msgspec.json.decode(text, type=_AckBody).nonce if text.startswith("{") else text
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise BadRequest('the body must be a nonce, or {"nonce": …}', code="bad_ack") from None
