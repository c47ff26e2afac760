"""``/try/events``: the try-it panel's way into the gateway. No channel's access is asked.

So these routes are there in development mode only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from aiohttp import web

from gateway.config.catalog import Catalog, Match
from gateway.core.clock import unix_ms
from gateway.core.errors import BadRequest, NotFound, Rejected, RequestTimeout
from gateway.core.event import Cursor, Draft, EventId, Fence
from gateway.http.request import is_proxied
from gateway.http.responses import json_response
from gateway.http.routes.subscribe import HEADERS, HEADERS_TO_PROXIES
from gateway.hub.replay import NOW
from gateway.hub.subscription import Subscription
from gateway.sources.router import Router
from gateway.streams.registry import Streams
from gateway.streams.upgrade import take_over

log = structlog.get_logger("gateway.console")

PATH = "/try/events"

Append = Callable[[Sequence[Draft], Cursor | None, Fence | None], Awaitable[list[EventId]]]


class _Sent(msgspec.Struct, forbid_unknown_fields=True):
    channel: str
    payload: msgspec.Raw
    type: str | None = None


_sent = msgspec.json.Decoder(_Sent)


@dataclass(frozen=True, slots=True)
class Trial:
    """The handlers. What is read is a stream like any other, what is sent an event like any other."""

    catalog: Catalog
    streams: Streams
    router: Router
    append: Append
    request_seconds: float

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(PATH, self._subscribe, allow_head=False)
        app.router.add_post(PATH, self._publish)

    async def _subscribe(self, request: web.Request) -> web.StreamResponse:
        match = self._match(request.query.get("channel", ""))
        subscription = Subscription.of((match,), "envelope", chunked=request.version >= (1, 1))
        with self.streams.reserve(subscription, may_ask=False) as place:
            opening = await self.streams.opening(subscription, NOW)
            first = place.first((match.name,), opening)
            headers = HEADERS_TO_PROXIES if is_proxied(request.headers) else HEADERS
            response, stream = await take_over(request, headers, first, lambda: place.take(opening))
            if stream is not None:
                self.streams.begin(stream, opening, len(subscription.frame(first)))
        return response

    async def _publish(self, request: web.Request) -> web.Response:
        # A form of another page cannot send this type without asking first (Fetch, §4.9).
        if request.content_type != "application/json":
            raise Rejected("Content-Type must be application/json", code="bad_content_type", status=415)
        try:
            async with asyncio.timeout(self.request_seconds):
                sent = _sent.decode(await request.read())
        except TimeoutError:
            raise RequestTimeout(f"the body did not come within {self.request_seconds:g} s") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(
                f"the body is no {{channel, payload, type}}: {error}", code="bad_event"
            ) from None
        match = self._match(sent.channel)
        draft = self.router.by_hand(match, _payload(match, sent), sent.type or None, unix_ms())
        (id,) = await self.append([draft], None, None)
        log.info("sent_by_hand", channel=match.declared.name, id=str(id), client=request.remote)
        return json_response({"id": str(id)})

    def _match(self, name: str) -> Match:
        match = self.catalog.resolve(name)
        if match is None:
            raise NotFound(
                "there is no such channel; of a template name an instance, as user.7 of user.{id}",
                code="unknown_channel",
            )
        return match


def _payload(match: Match, sent: _Sent) -> bytes:
    """Return the bytes of the event: of a channel of text, what a JSON string holds."""
    raw = bytes(sent.payload)
    if match.declared.spec.payload == "text" and raw.lstrip()[:1] == b'"':
        return msgspec.json.decode(raw, type=str).encode()
    return raw
