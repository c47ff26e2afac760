"""Reading request bodies: under the limit after decompression, within the deadline, all together bounded."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

from aiohttp import hdrs, web

from gateway.config.model.config import Config
from gateway.core.errors import BadRequest, PayloadTooLarge, RecordRejected, RequestTimeout, Unavailable

MAX_BODIES_TOTAL = 8
"""How many of the largest bodies may be in memory at once."""

MAX_BODIES_PER_CLIENT = 2
"""How many of them one address may have there."""

ALWAYS_ADMITTED_BYTES = 64 * 1024
"""Bytes of a body that is read however many there are."""

DECOMPRESS_STEP_BYTES = 64 * 1024
"""Bytes that are inflated at once."""


class BodyReader:
    """Reads bodies of ``largest`` bytes at the most, as ``limit`` says, within so many ``seconds``."""

    def __init__(
        self, max_bytes: int, timeout_seconds: float, limit_name: str = "limits.webhook_body"
    ) -> None:
        self.max_bytes = max_bytes
        self.timeout_seconds = timeout_seconds
        self._limit_name = limit_name
        self._reserved_bytes = 0
        self._reserved_bytes_by_client: dict[str, int] = {}
        self._idle_timeouts: set[asyncio.Timeout] = set()
        self._draining = asyncio.Event()
        self._active_reads = 0
        self._reads_finished = asyncio.Event()

    def apply(self, config: Config) -> None:
        """Read webhook bodies within the bounds of a configuration."""
        self.max_bytes, self.timeout_seconds = config.limits.webhook_body, config.timeouts.request

    def check_length(self, request: web.Request) -> None:
        """Refuse a body that says itself that it is too large. Raises PayloadTooLarge."""
        if request.content_length is not None and request.content_length > self.max_bytes:
            raise self.too_large_error()

    @asynccontextmanager
    async def read_whole(self, request: web.Request, client_key: str | None) -> AsyncIterator[bytes]:
        """Read a body; it counts as held in memory until the block ends, by an address (``whose``).

        Raises PayloadTooLarge, RequestTimeout, BadRequest, Rejected (415), or Unavailable where too many
        bodies are in memory already.
        """
        self.check_length(request)
        if self._draining.is_set():
            raise _shutting_down_error()
        body = bytearray()
        with self.reserve(client_key) as hold:
            try:
                with self._count_read():
                    await self._read_into(request, body, hold)
                whole = bytes(body)
                body.clear()  # or each would be held twice
                yield whole
            finally:
                body.clear()  # aiohttp keeps an error, and with it this frame, until the next full collection

    async def _read_into(
        self, request: web.Request, body: bytearray, set_reserved: Callable[[int], None]
    ) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                async with aclosing(self._decompressed_parts(request)) as parts:
                    async for part in parts:
                        body += part
                        if len(body) > self.max_bytes:
                            raise self.too_large_error()
                        set_reserved(len(body))
        except TimeoutError:
            if self._draining.is_set():
                raise _shutting_down_error() from None  # it is tried again elsewhere: nothing was wrong with it
            raise RequestTimeout(f"the body did not arrive within {self.timeout_seconds:g} s") from None

    async def read_parts(self, request: web.Request, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield a body as it comes, which may take as long as it likes.

        It ends when nothing came for ``idle_seconds``, and at a drain. Raises like `whole`.
        """
        async with aclosing(self._decompressed_parts(request)) as parts:
            while not self._draining.is_set():
                try:
                    async with asyncio.timeout(idle_seconds) as idle:
                        self._idle_timeouts.add(idle)
                        part = await anext(parts, None)
                except TimeoutError:
                    return
                finally:
                    self._idle_timeouts.discard(idle)
                if part is None:
                    return
                yield part

    async def throttle(self, seconds: float) -> None:
        """Wait, for a body that may come only so fast. Raises Unavailable at a drain."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return
        raise _shutting_down_error()

    async def drain(self) -> None:
        """Take no more; end those that come in parts; wait for the others, or until their time is over.

        aiohttp reads nothing any more once its server shuts down, so this comes first.
        """
        self._draining.set()
        now = asyncio.get_running_loop().time()
        for idle in self._idle_timeouts:
            with suppress(RuntimeError):  # it is over just now
                idle.reschedule(now)
        if self._active_reads:
            await self._reads_finished.wait()

    @contextmanager
    def _count_read(self) -> Iterator[None]:
        self._active_reads += 1
        try:
            yield
        finally:
            self._active_reads -= 1
            if not self._active_reads and self._draining.is_set():
                self._reads_finished.set()

    @contextmanager
    def reserve(self, client_key: str | None) -> Iterator[Callable[[int], None]]:
        """Count memory as held until the block ends; what is yielded is told how much it is by now.

        It raises Unavailable where too much is held already.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._add_reserved(client_key, size - held)
            held = size
            # A small body always finds room: what others hold is no reason to refuse it.
            if self._is_over_budget(client_key) and held > ALWAYS_ADMITTED_BYTES:
                raise Unavailable("too many webhook bodies are in memory just now", retry_after=2)

        try:
            yield hold
        finally:
            self._add_reserved(client_key, -held)

    def _add_reserved(self, client_key: str | None, size: int) -> None:
        self._reserved_bytes += size
        if client_key is not None:
            self._reserved_bytes_by_client[client_key] = (
                self._reserved_bytes_by_client.get(client_key, 0) + size
            )
            if not self._reserved_bytes_by_client[client_key]:
                del self._reserved_bytes_by_client[client_key]

    def _is_over_budget(self, client_key: str | None) -> bool:
        """Tell whether all hold too much, or one does: strangers must not use up what senders need."""
        of_one = 0 if client_key is None else self._reserved_bytes_by_client.get(client_key, 0)
        return (
            self._reserved_bytes > MAX_BODIES_TOTAL * self.max_bytes
            or of_one > MAX_BODIES_PER_CLIENT * self.max_bytes
        )

    def too_large_error(self) -> PayloadTooLarge:
        """Return the error of a body over the limit."""
        return PayloadTooLarge(f"the body is larger than {self._limit_name} ({self.max_bytes} bytes)")

    async def _decompressed_parts(self, request: web.Request) -> AsyncGenerator[bytes, None]:
        inflate = _decompressor(request)
        try:
            async for part in request.content.iter_any():
                if inflate is None:
                    yield part
                    continue
                # In steps: whoever takes them stops a bomb at its limit.
                while part and not inflate.eof:
                    yield inflate.decompress(part, DECOMPRESS_STEP_BYTES)
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


def _shutting_down_error() -> Unavailable:
    return Unavailable("the gateway is shutting down", retry_after=2)


def _decompressor(request: web.Request) -> "zlib._Decompress | None":
    """Return what undoes the body's Content-Encoding. Raises Rejected for one that is not known."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise RecordRejected(
            "Content-Encoding must be gzip, deflate or identity", code="unknown_encoding", status=415
        )
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)
