"""Reads request bodies, bounded in decompressed size, in time, and in their memory together."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress

from aiohttp import hdrs, web

from gateway.core.errors import BadRequest, PayloadTooLarge, RecordRejected, RequestTimeout, Unavailable

MAX_BODIES_TOTAL = 8
"""Most memory of all bodies together, in bodies of the largest size."""

MAX_BODIES_PER_CLIENT = 2
"""Most memory of one address's bodies, in bodies of the largest size."""

ALWAYS_ADMITTED_BYTES = 64 * 1024
"""A body of up to this many bytes is read however much memory others occupy."""

DECOMPRESS_STEP_BYTES = 64 * 1024
"""Most bytes that are inflated at once."""


class BodyReader:
    """Reads bodies of at most ``max_bytes`` within ``timeout_seconds``.

    ``limit_name`` starts the error of larger ones.
    """

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

    def reconfigure(self, max_bytes: int, timeout_seconds: float) -> None:
        """Apply other bounds."""
        self.max_bytes, self.timeout_seconds = max_bytes, timeout_seconds

    def check_length(self, request: web.Request) -> None:
        """Refuse a body whose Content-Length is too large. Raises PayloadTooLarge."""
        if request.content_length is not None and request.content_length > self.max_bytes:
            raise self.too_large_error()

    @asynccontextmanager
    async def read_whole(self, request: web.Request, client_key: str | None) -> AsyncIterator[bytes]:
        """Read a body. Its memory counts for the address ``client_key`` until the block ends.

        Raises PayloadTooLarge, RequestTimeout, BadRequest, RecordRejected (415), or Unavailable if too many
        bodies are in memory already.
        """
        self.check_length(request)
        if self._draining.is_set():
            raise _shutting_down_error()
        body = bytearray()
        with self.reserve(client_key) as set_reserved:
            try:
                with self._count_read():
                    await self._read_into(request, body, set_reserved)
                whole = bytes(body)
                body.clear()  # or two copies would be in memory
                yield whole
            finally:
                # aiohttp keeps an error, and with it this frame, until the next garbage collection.
                body.clear()

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
            if self._draining.is_set():  # nothing is wrong with the body: its sender retries at another node
                raise _shutting_down_error() from None
            raise RequestTimeout(f"the body did not arrive within {self.timeout_seconds:g} s") from None

    async def read_parts(self, request: web.Request, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield the parts of a body as they arrive, however long that takes.

        Ends when nothing arrived for ``idle_seconds``, and at a drain. Raises like `read_whole`.
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
        """Wait, to slow a sender down. Raises Unavailable at a drain."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            return
        raise _shutting_down_error()

    async def drain(self) -> None:
        """Refuse new bodies, end those read in parts, and wait until the others are read or time out.

        Call it before aiohttp's server shuts down, which stops reading.
        """
        self._draining.set()
        now = asyncio.get_running_loop().time()
        for idle in self._idle_timeouts:
            with suppress(RuntimeError):  # it has just expired
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
        """Reserve memory until the block ends. The yielded function sets how many bytes.

        It raises Unavailable if too much is reserved already.
        """
        reserved = 0

        def set_reserved(size: int) -> None:
            nonlocal reserved
            self._add_reserved(client_key, size - reserved)
            reserved = size
            # A small body is always admitted, whatever others reserved.
            if self._is_over_budget(client_key) and reserved > ALWAYS_ADMITTED_BYTES:
                raise Unavailable("too many webhook bodies are in memory just now", retry_after=2)

        try:
            yield set_reserved
        finally:
            self._add_reserved(client_key, -reserved)

    def _add_reserved(self, client_key: str | None, size: int) -> None:
        self._reserved_bytes += size
        if client_key is not None:
            by_client = self._reserved_bytes_by_client
            by_client[client_key] = by_client.get(client_key, 0) + size
            if not by_client[client_key]:
                del by_client[client_key]

    def _is_over_budget(self, client_key: str | None) -> bool:
        """Return whether all bodies, or one address's, occupy too much memory. None may starve the others."""
        own_bytes = 0 if client_key is None else self._reserved_bytes_by_client.get(client_key, 0)
        return (
            self._reserved_bytes > MAX_BODIES_TOTAL * self.max_bytes
            or own_bytes > MAX_BODIES_PER_CLIENT * self.max_bytes
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
                # In steps, so that the reader can stop a decompression bomb at its limit.
                while part and not inflate.eof:
                    yield inflate.decompress(part, DECOMPRESS_STEP_BYTES)
                    part = inflate.unconsumed_tail
                    await asyncio.sleep(0)  # a few bytes may inflate to very many: let others run
                if part or inflate.unused_data:
                    raise BadRequest(
                        "the body continues after the end of its compressed stream", code="bad_body"
                    )
            if inflate is not None and not inflate.eof:
                raise BadRequest("the body ends before its compressed stream does", code="bad_body")
        except web.RequestPayloadError:  # its text quotes the body
            raise BadRequest(
                "the body ends early, or its chunked encoding is invalid", code="bad_body"
            ) from None
        except RuntimeError:
            # aiohttp raises it for a sender that left before its body was read.
            if request.protocol.connected:
                raise
            raise BadRequest("the body ends early", code="bad_body") from None
        except zlib.error:
            raise BadRequest("the body does not match its Content-Encoding", code="bad_body") from None


def _shutting_down_error() -> Unavailable:
    return Unavailable("the gateway is shutting down", retry_after=2)


def _decompressor(request: web.Request) -> "zlib._Decompress | None":
    """Return the decompressor for the body's Content-Encoding. Raises RecordRejected for an unknown one."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding == "identity":
        return None
    if encoding not in ("gzip", "deflate"):
        raise RecordRejected(
            "Content-Encoding must be gzip, deflate or identity", code="unknown_encoding", status=415
        )
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32 if encoding == "gzip" else zlib.MAX_WBITS)
