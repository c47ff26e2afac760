"""The requests of a browser: a stream, a preflight, a HEAD, where redirects lead. By aiohttp."""

import asyncio
import ssl
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import aiohttp
from aiohttp import hdrs

from gateway import __version__
from gateway.cli.doctor.cors import PREFLIGHT_HEADERS
from gateway.cli.doctor.response import REDIRECTS, ResponseHead
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.doctor.timeouts import ProbeTimeouts
from gateway.cli.doctor.transcript import EndReason, Transcript, TranscriptRecorder

BROWSER_ENCODINGS = "gzip, deflate, br, zstd"
"""What browsers offer with every request."""

MAX_REDIRECTS = 10
"""Redirects that are followed; browsers follow 20."""

_MAX_BODY_BYTES = 64 * 1024
"""Bytes of an error's body that are read."""

_CONNECTION_ERRORS = (aiohttp.ClientError, OSError)


class ProbeStream:
    """An answer whose head has come. Times are in seconds since the request."""

    def __init__(self, response: aiohttp.ClientResponse, began: float) -> None:
        self._response = response
        self._started_at = began
        self.head_at_seconds = self._elapsed_seconds()
        self.head = _response_head(response)
        self.recorder = TranscriptRecorder(self.head_at_seconds)

    def _elapsed_seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    async def listen(self, until: float, is_done: Callable[[], bool] = lambda: False) -> Transcript:
        """Listen until that many seconds after the request, or until ``enough``. Cancelling is safe."""
        try:
            async with asyncio.timeout_at(self._started_at + until):
                while not is_done():
                    data = await self._response.content.readany()
                    if not data:
                        return self.recorder.finish(self._elapsed_seconds(), EndReason.BODY_ENDED)
                    self.recorder.feed(data, self._elapsed_seconds())
        except TimeoutError:
            pass
        except _CONNECTION_ERRORS:
            return self.recorder.finish(self._elapsed_seconds(), EndReason.CONNECTION_LOST)
        return self.recorder.finish(self._elapsed_seconds(), EndReason.STILL_OPEN)

    async def read_body(self, seconds: float) -> bytes:
        """Return what comes of the body within some seconds, or nothing of one that cannot be read."""
        body = b""
        try:
            async with asyncio.timeout(seconds):
                while len(body) < _MAX_BODY_BYTES and (data := await self._response.content.readany()):
                    body += data
        except (TimeoutError, *_CONNECTION_ERRORS):
            pass
        return _decompress(body, self.head.get("Content-Encoding").lower())

    def close(self) -> None:
        """End the connection."""
        self._response.close()


class ProbeClient:
    """Asks for one target. Every request has a connection of its own, as a reconnect has."""

    def __init__(self, target: ProbeTarget, context: ssl.SSLContext, timeouts: ProbeTimeouts) -> None:
        self._target = target
        self._timeouts = timeouts
        context.set_alpn_protocols(["http/1.1"])  # aiohttp speaks nothing newer; the handshake offered h2
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # an answer in a coding that is not installed would be no answer
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_seconds),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def open_stream(self, *, encodings: str = "identity", last_id: str = "") -> ProbeStream:
        """Ask for the stream. Raises TimeoutError (no head), aiohttp.ClientError or OSError."""
        headers = {
            **self._page_headers(),
            hdrs.ACCEPT: "text/event-stream",
            hdrs.ACCEPT_ENCODING: encodings,
            hdrs.CACHE_CONTROL: "no-cache",
        }
        if last_id:
            headers["Last-Event-ID"] = last_id
        began = asyncio.get_running_loop().time()
        return ProbeStream(await self._request(hdrs.METH_GET, self._target.url, headers), began)

    async def fetch_head(self) -> ResponseHead | None:
        """Ask for the head alone; None if it does not come."""
        headers = self._page_headers()
        headers[hdrs.ACCEPT] = "text/event-stream"
        headers[hdrs.ACCEPT_ENCODING] = BROWSER_ENCODINGS
        return await self._request_head(hdrs.METH_HEAD, headers)

    async def send_preflight(self) -> ResponseHead | None:
        """Ask as browsers do before a fetch with headers, without a token; None without answer."""
        headers: dict[str, str] = {
            hdrs.ORIGIN: self._target.origin or "",
            hdrs.ACCESS_CONTROL_REQUEST_METHOD: hdrs.METH_GET,
            hdrs.ACCESS_CONTROL_REQUEST_HEADERS: ",".join(PREFLIGHT_HEADERS),
        }
        return await self._request_head(hdrs.METH_OPTIONS, headers)

    async def follow_redirects(self, location: str) -> str | None:
        """Return where redirects end, or None. The token is not sent: they may leave the site."""
        url = self._target.url
        for _ in range(MAX_REDIRECTS):
            try:
                url = urljoin(url, location)
                response = await self._request(hdrs.METH_GET, url, {hdrs.ACCEPT: "text/event-stream"})
            except (ValueError, TimeoutError, *_CONNECTION_ERRORS):
                return None
            response.close()
            if response.status not in REDIRECTS:
                return url
            location = response.headers.get(hdrs.LOCATION, "")
        return None

    def _page_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self._target.origin is not None:
            headers[hdrs.ORIGIN] = self._target.origin
        if self._target.token is not None:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._target.token}"
        return headers

    async def _request_head(self, method: str, headers: dict[str, str]) -> ResponseHead | None:
        try:
            response = await self._request(method, self._target.url, headers)
        except (TimeoutError, *_CONNECTION_ERRORS):
            return None
        response.close()
        return _response_head(response)

    async def _request(self, method: str, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        own = {hdrs.USER_AGENT: f"sse-gateway-doctor/{__version__}"}
        async with asyncio.timeout(self._timeouts.response_seconds):
            return await self._session.request(method, url, headers=own | headers, allow_redirects=False)


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding in ("gzip", "deflate"):
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _MAX_BODY_BYTES)
        except zlib.error:
            return b""
    return b"" if encoding else body[:_MAX_BODY_BYTES]


def _response_head(response: aiohttp.ClientResponse) -> ResponseHead:
    pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
    return ResponseHead(response.status, pairs)
