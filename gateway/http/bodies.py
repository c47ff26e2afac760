"""Reading request bodies: under the limit after decompression, within the deadline, all together bounded."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import hdrs, web

from gateway.errors import BadRequest, PayloadTooLarge, Rejected, RequestTimeout, Unavailable

TOGETHER = 8
"""How many of the largest bodies may be in memory at once."""


class Bodies:
    """Reads bodies. ``largest`` is in bytes; ``seconds`` is how long one may take."""

    def __init__(self, largest: int, seconds: float) -> None:
        self.largest = largest
        self.seconds = seconds
        self._held = 0
        self._idle: set[asyncio.Timeout] = set()
        self._is_draining = False

    def check_length(self, request: web.Request) -> None:
        """Refuse a body that says itself that it is too large. Raises PayloadTooLarge."""
        if request.content_length is not None and request.content_length > self.largest:
            raise self.too_large()

    @asynccontextmanager
    async def whole(self, request: web.Request) -> AsyncIterator[bytes]:
        """Read a body; it counts as held in memory until the block ends.

        Raises PayloadTooLarge, RequestTimeout, BadRequest, Rejected (415), or Unavailable where too many
        bodies are in memory already.
        """
        self.check_length(request)
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self._held -= len(body)
            body.clear()  # aiohttp keeps an error, and with it this frame, until the next full collection

    async def _read(self, request: web.Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                async for part in self._inflated(request):
                    body += part
                    self._hold(len(part))
                    if len(body) > self.largest:
                        raise self.too_large()
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {self.seconds:g} s") from None

    async def parts(self, request: web.Request, idle_seconds: float) -> AsyncIterator[bytes]:
        """Yield a body as it comes, which may take as long as it likes.

        It ends when nothing came for ``idle_seconds``, and at a drain. Raises like `whole`.
        """
        parts = self._inflated(request)
        while not self._is_draining:
            try:
                async with asyncio.timeout(idle_seconds) as idle:
                    self._idle.add(idle)
                    part = await anext(parts, None)
            except TimeoutError:
                return
            finally:
                self._idle.discard(idle)
            if part is None:
                return
            yield part

    def drain(self) -> None:
        """End the bodies that come in parts."""
        self._is_draining = True
        now = asyncio.get_running_loop().time()
        for idle in self._idle:
            idle.reschedule(now)

    def too_large(self) -> PayloadTooLarge:
        """Return the error of a body over the limit."""
        return PayloadTooLarge(f"the body is larger than limits.webhook_body ({self.largest} bytes)")

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > TOGETHER * self.largest:
            raise Unavailable("too many webhook bodies are in memory just now", retry_after=2)

    async def _inflated(self, request: web.Request) -> AsyncIterator[bytes]:
        inflate = _inflater(request)
        try:
            async for part in request.content.iter_any():
                if inflate is None:
                    yield part
                    continue
                # One byte over the limit is enough to know: a bomb is never inflated further.
                out = inflate.decompress(part, self.largest + 1)
                if inflate.unconsumed_tail:
                    raise self.too_large()
                yield out
            if inflate is not None and (not inflate.eof or inflate.unused_data):
                raise BadRequest("the body is not one whole compressed stream", code="bad_body")
        except web.RequestPayloadError as error:
            raise BadRequest(f"the body cannot be read: {error}", code="bad_body") from None
        except zlib.error:
            raise BadRequest("the body is not what its Content-Encoding says", code="bad_body") from None


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
