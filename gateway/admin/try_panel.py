"""``/try/events``: the try-it panel's way into the gateway. No channel's access is asked.

So these routes are there in development mode only.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from aiohttp import web

from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch
from gateway.core.clock import unix_ms
from gateway.core.errors import BadRequest, NotFound, RecordRejected, RequestTimeout
from gateway.core.event import Draft, EventId, FencingToken, SourceOffset
from gateway.http.request import is_proxied
from gateway.http.responses import json_response
from gateway.http.routes.subscribe import STREAM_HEADERS, STREAM_HEADERS_FOR_PROXIES
from gateway.hub.replay import FROM_NOW
from gateway.hub.subscription import Subscription
from gateway.sources.router import Router
from gateway.streams.registry import StreamRegistry
from gateway.streams.upgrade import take_over

log = structlog.get_logger("gateway.console")

TRY_PATH = "/try/events"

AppendDrafts = Callable[[Sequence[Draft], SourceOffset | None, FencingToken | None], Awaitable[list[EventId]]]


class _PublishRequest(msgspec.Struct, forbid_unknown_fields=True):
    channel: str
    payload: msgspec.Raw
    type: str | None = None


_publish_request_decoder = msgspec.json.Decoder(_PublishRequest)


@dataclass(frozen=True, slots=True)
class TryPanel:
    """The handlers. What is read is a stream like any other, what is sent an event like any other."""

    catalog: ChannelCatalog
    streams: StreamRegistry
    router: Router
    append: AppendDrafts
    request_seconds: float

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(TRY_PATH, self._subscribe, allow_head=False)
        app.router.add_post(TRY_PATH, self._publish)

    async def _subscribe(self, request: web.Request) -> web.StreamResponse:
        match = self._resolve_channel(request.query.get("channel", ""))
        subscription = Subscription.of((match,), "envelope", chunked=request.version >= (1, 1))
        with self.streams.acquire_slot(subscription, is_ack_capable=False) as place:
            opening = await self.streams.resolve_start(subscription, FROM_NOW)
            first = place.first_blocks((match.name,), opening)
            headers = STREAM_HEADERS_FOR_PROXIES if is_proxied(request.headers) else STREAM_HEADERS
            response, stream = await take_over(
                request, headers, first, lambda: place.create_connection(opening)
            )
            if stream is not None:
                self.streams.register(stream, opening, len(subscription.frame(first)))
        return response

    async def _publish(self, request: web.Request) -> web.Response:
        # A form of another page cannot send this type without asking first (Fetch, §4.9).
        if request.content_type != "application/json":
            raise RecordRejected("Content-Type must be application/json", code="bad_content_type", status=415)
        try:
            async with asyncio.timeout(self.request_seconds):
                sent = _publish_request_decoder.decode(await request.read())
        except TimeoutError:
            raise RequestTimeout(f"the body did not come within {self.request_seconds:g} s") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(
                f"the body is no {{channel, payload, type}}: {error}", code="bad_event"
            ) from None
        match = self._resolve_channel(sent.channel)
        draft = self.router.create_draft(match, _payload(match, sent), sent.type or None, unix_ms())
        (id,) = await self.append([draft], None, None)
        log.info("test_event_published", channel=match.declared.name, id=str(id), client=request.remote)
        return json_response({"id": str(id)})

    def _resolve_channel(self, name: str) -> ChannelMatch:
        match = self.catalog.resolve(name)
        if match is None:
            raise NotFound(
                "there is no such channel; of a template name an instance, as user.7 of user.{id}",
                code="unknown_channel",
            )
        return match


def _payload(match: ChannelMatch, sent: _PublishRequest) -> bytes:
    """Return the bytes of the event: of a channel of text, what a JSON string holds."""
    raw = bytes(sent.payload)
    if match.declared.config.payload == "text" and raw.lstrip()[:1] == b'"':
        return msgspec.json.decode(raw, type=str).encode()
    return raw
