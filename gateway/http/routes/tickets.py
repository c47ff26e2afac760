"""``POST /tickets``: issues a ticket, which may stand in a URL, for a token in a header."""

import time
from dataclasses import dataclass

from aiohttp import hdrs, web

from gateway.auth.authenticator import Authenticator
from gateway.core.errors import GatewayError, Overloaded, TooManyRequests
from gateway.http.responses import json_response, raw_error_response
from gateway.http.routes.subscribe import SubscribeHandler, build_auth_request

TICKETS_PATH = "/tickets"


@dataclass(frozen=True, slots=True)
class TicketHandler:
    """Issues tickets for channels, by the rules for streams of them."""

    subscribe_handler: SubscribeHandler
    authenticator: Authenticator

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Issue a ticket for ``?channel=a&channel=b``."""
        handler = self.subscribe_handler
        ask = handler.parser.from_aiohttp(request)
        try:
            check = handler.check_request(ask)
            ticket = await self.authenticator.issue_ticket(build_auth_request(ask), check.matches)
            body = {
                "ticket": ticket.value,
                "channels": ask.channels,
                "expires": round(ticket.expires, 3),
                "expires_in": round(ticket.expires - time.time(), 3),
            }
            response = json_response(body, status=201)
            response.headers[hdrs.CACHE_CONTROL] = "no-store"
        except GatewayError as caught:
            # Unlike a stream's, this client reads the status: 429 and not a stream that ends.
            is_overload = isinstance(caught, Overloaded)
            error = TooManyRequests(caught.message, retry_after=1) if is_overload else caught
            handler.record_refusal(ask, error)
            response = raw_error_response(error).to_aiohttp()
        response.headers.update(handler.cors.response_headers(ask, ask.channels))
        return response
