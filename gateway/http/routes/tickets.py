"""``POST /tickets``: a token in a header for a value that may stand in a URL."""

import time
from dataclasses import dataclass

from aiohttp import hdrs, web

from gateway.auth.authenticator import Authenticator
from gateway.core.errors import GatewayError, Overloaded, TooManyRequests
from gateway.http.request import StreamRequest
from gateway.http.responses import json_response, raw_error_response
from gateway.http.routes.subscribe import SubscribeHandler

TICKETS_PATH = "/tickets"


@dataclass(frozen=True, slots=True)
class TicketHandler:
    """The handler. Who may have a ticket for channels is decided as for a stream of them."""

    subscribe_handler: SubscribeHandler
    authenticator: Authenticator

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Give a ticket for ``?channel=a&channel=b``."""
        ask = StreamRequest.from_aiohttp_request(request, self.subscribe_handler.catalog.resolve)
        try:
            wanted = self.subscribe_handler.authorize(ask)
            ticket = await self.authenticator.issue_ticket(
                self.subscribe_handler.build_auth_request(ask), wanted.matches
            )
        except Overloaded as error:  # whoever posts reads the status
            return self._refusal_response(ask, TooManyRequests(error.message, retry_after=1))
        except GatewayError as error:
            return self._refusal_response(ask, error)
        told = {
            "ticket": ticket.value,
            "channels": ask.channels,
            "expires": round(ticket.expires, 3),
            "expires_in": round(ticket.expires - time.time(), 3),
        }
        response = json_response(told, status=201)
        response.headers.update(
            {**self.subscribe_handler.cors.response_headers(ask), hdrs.CACHE_CONTROL: "no-store"}
        )
        return response

    def _refusal_response(self, request: StreamRequest, error: GatewayError) -> web.Response:
        self.subscribe_handler.record_refusal(request, error)
        response = raw_error_response(error).to_aiohttp()
        response.headers.update(self.subscribe_handler.cors.response_headers(request))
        return response
