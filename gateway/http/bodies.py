"""Reading request bodies: under the limit after decompression, within the deadline, all together bounded."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

from aiohttp import hdrs, web

from gateway.core.errors import BadRequest, PayloadTooLarge, Rejected, RequestTimeout, Unavailable

TOGETHER = 8
"""How many of the largest bodies may be in memory at once."""

OF_ONE = 2
"""How many of them one address may have there."""

SMALL = 64 * 1024
"""Bytes of a body that is read however many there are."""

STEP = 64 * 1024
"""Bytes that are inflated at once."""


class Bodies:
    """Reads bodies of ``largest`` bytes at the most, as ``limit`` says, within so many ``seconds``."""

    def __init__(self, largest: int, seconds: float, limit: str = "limits.webhook_body") -> None:
        self.largest = largest
        self.seconds = seconds
        self._limit = limit
        self._held = 0
        self._held_by: dict[str, int] = {}
        self._idle: set[asyncio.Timeout] = set()
        self._draining = asyncio.Event()
        self._reading = 0
        self._all_read = asyncio.Event()

    def reconfigure(self, largest: int, seconds: float) -> None:
        """Take other bounds."""
        self.largest, self.seconds = largest, seconds

    def check_length(self, request: web.Request) -> None:
        """Refuse a body that says itself that it is too large. Raises PayloadTooLarge."""
        if request.content_length is not None and request.content_length > self.largest:
            raise self.too_large()

    @asynccontextmanager
    async def whole(self, request: web.Request, whose: str | None) -> AsyncIterator[bytes]:
        """Read a body; it counts as held in memory until the block ends, by an address (``whose``).

        Raises PayloadTooLarge, RequestTimeout, BadRequest, Rejected (415), or Unavailable where too many
        bodies are in memory already.
        """
        self.check_length(request)
        if self._draining.is_set():
            raise _going()
        body = bytearray()
        with self.holding(whose) as hold:
            try:
                with self._counted():
                    await self._read(request, body, hold)
                whole = bytes(body)
                body.clear()  # or each would be held twice
                yield whole
            finally:
                body.clear()  # aiohttp keeps an error, and with it this frame, until the next full collection

    async def _read(self, request: web.Request, body: bytearray, hold: Callable[[int], None]) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                async with aclosing(self._inflated(request)) as parts:
                    async for part in parts:
                        body += part
                        if len(body) > self.largest:
                            raise self.too_large()
                        hold(len(body))
        except TimeoutError:
            if self._draining.is_set():
                raise _going() from None  # it is tried again elsewhere: nothing was wrong with it
            raise RequestTimeout(f"the body did not arrive within {self.seconds:g} s") from None

    async def parts(self, request: web.Request, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield a body as it comes, which may take as long as it likes.

        It ends when nothing came for ``idle_seconds``, and at a drain. Raises like `whole`.
        """
        async with aclosing(self._inflated(request)) as parts:
            while not self._draining.is_set():
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

    async def pause(self, seconds: float) -> None:
        """Wait, for a body that may come only so fast. Raises Unavailable at a drain."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return
        raise _going()

    async def drain(self) -> None:
        """Take no more; end those that come in parts; wait for the others, or until their time is over.

        aiohttp reads nothing any more once its server shuts down, so this comes first.
        """
        self._draining.set()
        now = asyncio.get_running_loop().time()
        for idle in self._idle:
            with suppress(RuntimeError):  # it is over just now
                idle.reschedule(now)
        if self._reading:
            await self._all_read.wait()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1
            if not self._reading and self._draining.is_set():
                self._all_read.set()

    @contextmanager
    def holding(self, whose: str | None) -> Iterator[Callable[[int], None]]:
        """Count memory as held until the block ends; what is yielded is told how much it is by now.

        It raises Unavailable where too much is held already.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._add(whose, size - held)
            held = size
            # A small body always finds room: what others hold is no reason to refuse it.
            if self._is_full(whose) and held > SMALL:
                raise Unavailable("too many webhook bodies are in memory just now", retry_after=2)

        try:
            yield hold
        finally:
            self._add(whose, -held)

    def _add(self, whose: str | None, size: int) -> None:
        self._held += size
        if whose is not None:
            self._held_by[whose] = self._held_by.get(whose, 0) + size
            if not self._held_by[whose]:
                del self._held_by[whose]

    def _is_full(self, whose: str | None) -> bool:
        """Tell whether all hold too much, or one does: strangers must not use up what senders need."""
        of_one = 0 if whose is None else self._held_by.get(whose, 0)
        return self._held > TOGETHER * self.largest or of_one > OF_ONE * self.largest

    def too_large(self) -> PayloadTooLarge:
        """Return the error of a body over the limit."""
        return PayloadTooLarge(f"the body is larger than {self._limit} ({self.largest} bytes)")

    async def _inflated(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        inflate = _inflater(request)
        try:
            async for part in request.content.iter_any():
                if inflate is None:
                    yield part
                    continue
                # In steps: whoever takes them stops a bomb at its limit.
                while part and not inflate.eof:
                    yield inflate.decompress(part, STEP)
                    part = inflate.unconsumed_tail
                    await asyncio.sleep(0)  # a few bytes may become very many: others get their turns
                if part or inflate.unused_data:
                    raise BadRequest("the body goes on after its compressed stream", code="bad_body")
            if inflate is not None and not inflate.eof:
                raise BadRequest("the body is not one whole compressed stream", code="bad_body")
        except web.RequestPayloadError:  # its words quote the body
            raise BadRequest("the body breaks off, or is not chunked as HTTP asks", code="bad_body") from None
        except RuntimeError:
            # aiohttp's word for a sender that was gone before anybody looked at its body.
            if request.protocol.connected:
                raise
            raise BadRequest("the body breaks off", code="bad_body") from None
        except zlib.error:
            raise BadRequest("the body is not what its Content-Encoding says", code="bad_body") from None


def _going() -> Unavailable:
    return Unavailable("the gateway is shutting down", retry_after=2)


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
