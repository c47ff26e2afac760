"""``POST /streams/{connection}/ack``: a client's answer to a heartbeat, on whichever node it lands.

No credentials are asked for: the nonce was told on that stream alone. Whatever no node made is refused here,
before anybody else hears of it (`gateway.streams.acks.nonces`), and is no line in the log.
"""

from dataclasses import dataclass

import msgspec
from aiohttp import hdrs, web
from prometheus_client import Counter

from gateway.core.errors import BadRequest, Forbidden, GatewayError, TooManyRequests
from gateway.http.bodies import Bodies
from gateway.http.cors import CorsPolicy
from gateway.http.request import Ask
from gateway.http.responses import error_answer
from gateway.streams.acks.forwarder import Elsewhere
from gateway.streams.acks.nonces import Nonces
from gateway.streams.acks.tracker import Acks
from gateway.streams.quotas.limits import Limits

PATH = "/streams/{connection:[0-9a-f]{24}}/ack"

MAX_BODY = 512
"""Bytes of an answer."""


class _Answer(msgspec.Struct, frozen=True):
    nonce: str


@dataclass(slots=True)
class Acknowledge:
    """The handler. ``bodies`` read at most `MAX_BODY`."""

    acks: Acks
    nonces: Nonces
    elsewhere: Elsewhere
    cors: CorsPolicy
    limits: Limits
    bodies: Bodies
    results: Counter

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Take an answer: 204, or 202 where it is told to the node that has the stream."""
        ask = self.cors.ask(request)
        try:
            result = await self._take(ask, request)
            response = web.Response(status=202 if result == "elsewhere" else 204)
        except GatewayError as error:
            result = "refused"
            response = error_answer(error).response()
        self.results.labels(result).inc()
        response.headers.update(self.cors.headers_of_any(ask))
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        if not self._is_of_proxy(ask):
            response.force_close()  # kept alive until the next one, each stream would be two connections
        return response

    async def _take(self, ask: Ask, request: web.Request) -> str:
        caller = ask.caller if ask.forwarded is None else self.limits.behind(ask.caller, ask.forwarded)
        if not self.limits.peers.answers(caller.peer):
            raise TooManyRequests(
                "answers come too fast: limits.connect_rate_per_address bounds them too", retry_after=1
            )
        self.cors.check_any(ask)
        async with self.bodies.whole(request, None if caller.peer is None else caller.peer.unit) as body:
            nonce = _nonce(body)
        connection = request.match_info["connection"]
        number = self.nonces.number(connection, nonce)
        if number is None:
            raise Forbidden("this nonce was not told on that stream", code="unknown_nonce")
        if self.acks.answered(connection, number):
            return "here"
        return "elsewhere" if self.elsewhere.tell(connection, number) else "late"

    def _is_of_proxy(self, ask: Ask) -> bool:
        address = ask.caller.address
        return address is None or self.limits.proxies.trusts(address)


def _nonce(body: bytes) -> str:
    """Return what a body holds: the nonce itself, or ``{"nonce": …}``. Raises BadRequest."""
    try:
        text = body.decode("ascii").strip()
        return msgspec.json.decode(text, type=_Answer).nonce if text.startswith("{") else text
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        raise BadRequest('the body is no nonce, and no {"nonce": …}', code="bad_ack") from None
