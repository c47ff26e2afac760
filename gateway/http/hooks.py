"""``POST /hooks/{source}``: a webhook's request to its source, and the answer."""

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import hdrs, web

from gateway.errors import BadRequest, GatewayError, NotFound, PayloadTooLarge, Rejected, RequestTimeout
from gateway.http.responses import error_response, json_response
from gateway.sources.webhook import WebhookSource


def _inflater(request: web.Request) -> "zlib._Decompress | None":
    """Return what undoes the body's Content-Encoding. Raises Rejected for one that is not known."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise Rejected(
            "Content-Encoding must be gzip, deflate or identity", code="unknown_encoding", status=415
        )
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)


@dataclass(frozen=True, slots=True)
class Hooks:
    """The handlers of ``/hooks/{source}``."""

    sources: Mapping[str, WebhookSource]
    body_bytes: int
    request_seconds: float

    async def post(self, request: web.Request) -> web.Response:
        """Answer 200 once the log has all events of the body; see DESIGN's guarantee "accepted is kept"."""
        source = self._source(request)
        try:
            source.authorize(request.headers.get(hdrs.AUTHORIZATION))
            body = await self._body(request)
            ids = await source.receive(
                topic=request.query.get("topic"),
                content_type=request.content_type,
                body=body,
                idempotency_key=request.headers.get("Idempotency-Key") or None,
            )
        except GatewayError as error:
            source.refused(error)
            raise
        return json_response({"accepted": len(ids), "ids": [str(id) for id in ids]})

    async def head(self, request: web.Request) -> web.Response:
        """Answer a sender's health check."""
        self._source(request)
        return web.Response(headers={hdrs.ALLOW: "POST, HEAD, OPTIONS"})

    async def options(self, request: web.Request) -> web.Response:
        """Say what may be done here."""
        self._source(request)
        return web.Response(status=204, headers={hdrs.ALLOW: "POST, HEAD, OPTIONS"})

    async def expect(self, request: web.Request) -> web.Response | None:
        """Answer ``Expect: 100-continue``, or refuse before the body is sent.

        aiohttp calls this outside of all middlewares; a response that is returned takes the place of
        the handler's.
        """
        try:
            source = self._source(request)
            try:
                source.authorize(request.headers.get(hdrs.AUTHORIZATION))
                self._check_length(request)
            except GatewayError as error:
                source.refused(error)
                raise
        except GatewayError as error:
            return error_response(error)
        if request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    def _source(self, request: web.Request) -> WebhookSource:
        name = request.match_info["source"]
        if name not in self.sources:
            raise NotFound(f"there is no webhook source {name[:200]!r}", code="unknown_source")
        return self.sources[name]

    def _check_length(self, request: web.Request) -> None:
        if request.content_length is not None and request.content_length > self.body_bytes:
            raise self._too_large()

    async def _body(self, request: web.Request) -> bytes:
        """Read the body under the limit, which holds after decompression, and the deadline."""
        self._check_length(request)
        inflate = _inflater(request)
        body = bytearray()
        try:
            async with asyncio.timeout(self.request_seconds):
                async for part in request.content.iter_any():
                    # One byte over the limit is enough to know: a bomb is never inflated further.
                    body += (
                        part if inflate is None else inflate.decompress(part, self.body_bytes + 1 - len(body))
                    )
                    if len(body) > self.body_bytes or (inflate is not None and inflate.unconsumed_tail):
                        raise self._too_large()
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self.request_seconds:g} s") from None
        except web.RequestPayloadError as error:
            raise BadRequest(f"the body cannot be read: {error}", code="bad_body") from None
        except zlib.error:
            raise BadRequest("the body is not what its Content-Encoding says", code="bad_body") from None
        except ConnectionError:
            body.clear()  # aiohttp keeps the error, and with it this frame, until the next full collection
            raise
        if inflate is not None and (not inflate.eof or inflate.unused_data):
            raise BadRequest("the body is not one whole compressed stream", code="bad_body")
        return bytes(body)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than limits.webhook_body ({self.body_bytes} bytes)")
