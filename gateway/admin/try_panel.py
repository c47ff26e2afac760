"""``/try/events``: lets the console's try-it panel follow and publish to channels, in development mode only.

It checks no channel's access rules.
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
from gateway.http.routes.subscribe import STREAM_HEADERS, STREAM_HEADERS_FOR_PROXIES, respond_with_stream
from gateway.hub.replay import FROM_NOW
from gateway.hub.subscription import Subscription
from gateway.sources.router import Router
from gateway.streams.registry import StreamRegistry

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
    """Handles the panel's requests, with ordinary streams and ordinary events."""

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
        slot = self.streams.acquire_slot(subscription, is_ack_capable=False)
        start = await slot.prepare(FROM_NOW)
        return await respond_with_stream(
            request,
            slot,
            start,
            channels=(match.name,),
            headers=STREAM_HEADERS_FOR_PROXIES if is_proxied(request.headers) else STREAM_HEADERS,
            on_open=lambda stream, sent_bytes: self.streams.register(stream, start, sent_bytes),
        )

    async def _publish(self, request: web.Request) -> web.Response:
        # A form of another page cannot send this type without a preflight (Fetch, §4.9).
        if request.content_type != "application/json":
            raise RecordRejected("Content-Type must be application/json", code="bad_content_type", status=415)
        try:
            async with asyncio.timeout(self.request_seconds):
                published = _publish_request_decoder.decode(await request.read())
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self.request_seconds:g} s") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(
                f"the body must be JSON of channel, payload and optionally type: {error}", code="bad_event"
            ) from None
        match = self._resolve_channel(published.channel)
        draft = self.router.create_draft(match, _payload(match, published), published.type or None, unix_ms())
        (id,) = await self.append([draft], None, None)
        log.info("test_event_published", channel=match.declared.name, id=str(id), client=request.remote)
        return json_response({"id": str(id)})

    def _resolve_channel(self, name: str) -> ChannelMatch:
        match = self.catalog.resolve(name)
        if match is None:
            raise NotFound(
                "there is no such channel; for a template, name an instance, such as user.7 of user.{id}",
                code="unknown_channel",
            )
        return match


def _payload(match: ChannelMatch, published: _PublishRequest) -> bytes:
    """Return the payload bytes. For a channel of text, a JSON string is decoded."""
    raw = bytes(published.payload)
    if match.declared.config.payload == "text" and raw.lstrip()[:1] == b'"':
        return msgspec.json.decode(raw, type=str).encode()
    return raw
