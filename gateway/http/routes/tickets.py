"""``POST /tickets``: a token in a header for a value that may stand in a URL."""

import time
from dataclasses import dataclass

from aiohttp import hdrs, web

from gateway.auth.authenticator import Authenticator
from gateway.core.errors import GatewayError, Overload, TooManyRequests
from gateway.http.request import Ask
from gateway.http.responses import error_answer, json_response
from gateway.http.routes.subscribe import Subscribe

PATH = "/tickets"


@dataclass(frozen=True, slots=True)
class TicketOffice:
    """The handler. Who may have a ticket for channels is decided as for a stream of them."""

    subscribe: Subscribe
    authenticator: Authenticator

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Give a ticket for ``?channel=a&channel=b``."""
        ask = Ask.of_request(request, self.subscribe.catalog.resolve)
        try:
            wanted = self.subscribe.want(ask)
            ticket = await self.authenticator.ticket(self.subscribe.question(ask), wanted.matches)
        except Overload as error:  # whoever posts reads the status
            return self._refused(ask, TooManyRequests(error.message, retry_after=1))
        except GatewayError as error:
            return self._refused(ask, error)
        told = {
            "ticket": ticket.text,
            "channels": ask.channels,
            "expires": round(ticket.expires, 3),
            "expires_in": round(ticket.expires - time.time(), 3),
        }
        response = json_response(told, status=201)
        response.headers.update({**self.subscribe.cors.headers(ask), hdrs.CACHE_CONTROL: "no-store"})
        return response

    def _refused(self, ask: Ask, error: GatewayError) -> web.Response:
        self.subscribe.note_refusal(ask, error)
        response = error_answer(error).response()
        response.headers.update(self.subscribe.cors.headers(ask))
        return response
