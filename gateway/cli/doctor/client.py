"""Sends the requests of a browser: a stream, a preflight, a HEAD, and those of redirects."""

import asyncio
import ssl
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urljoin

import aiohttp
from aiohttp import hdrs

from gateway.cli.doctor.cors import PREFLIGHT_HEADERS
from gateway.cli.doctor.response import REDIRECTS, ResponseHead
from gateway.cli.doctor.streaming import ProbeTimeouts
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.doctor.transcript import EndReason, Transcript, TranscriptRecorder
from gateway.cli.http_client import CONNECTION_ERRORS, MAX_ERROR_BODY_BYTES, client_session, stream_headers

BROWSER_ENCODINGS = "gzip, deflate, br, zstd"
"""Accept-Encoding of browsers."""

MAX_REDIRECTS = 10
"""Redirects that are followed; browsers follow 20."""


class ProbeStream:
    """A response whose head has arrived. Times are in seconds since the request."""

    def __init__(self, response: aiohttp.ClientResponse, started_at: float) -> None:
        self._response = response
        self._started_at = started_at
        self.head_at_seconds = self._elapsed_seconds()
        self.head = _response_head(response)
        self.recorder = TranscriptRecorder(self.head_at_seconds)

    def _elapsed_seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._started_at

    async def listen(self, until: float, is_done: Callable[[], bool] = lambda: False) -> Transcript:
        """Listen until ``until`` seconds after the request, or ``is_done``. Cancelling is safe."""
        try:
            async with asyncio.timeout_at(self._started_at + until):
                while not is_done():
                    data = await self._response.content.readany()
                    if not data:
                        return self.recorder.finish(self._elapsed_seconds(), EndReason.BODY_ENDED)
                    self.recorder.feed(data, self._elapsed_seconds())
        except TimeoutError:
            pass
        except CONNECTION_ERRORS:
            return self.recorder.finish(self._elapsed_seconds(), EndReason.CONNECTION_LOST)
        return self.recorder.finish(self._elapsed_seconds(), EndReason.STILL_OPEN)

    async def read_body(self, seconds: float) -> bytes:
        """Return the part of the body that arrives in time; empty if it cannot be decompressed."""
        body = b""
        try:
            async with asyncio.timeout(seconds):
                while len(body) < MAX_ERROR_BODY_BYTES and (data := await self._response.content.readany()):
                    body += data
        except CONNECTION_ERRORS:
            pass
        return _decompress(body, self.head.get("Content-Encoding").lower())

    def close(self) -> None:
        """Close the connection."""
        self._response.close()


class ProbeClient:
    """Sends requests for one target, each on a connection of its own, as a reconnect is."""

    def __init__(self, target: ProbeTarget, context: ssl.SSLContext, timeouts: ProbeTimeouts) -> None:
        self._target = target
        self._timeouts = timeouts
        context.set_alpn_protocols(
            ["http/1.1"]
        )  # aiohttp speaks nothing newer; the earlier handshake offered h2
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_seconds)
        self._session = client_session("doctor", context, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def open_stream(self, *, encodings: str = "identity", last_id: str = "") -> ProbeStream:
        """Request the stream. Raises TimeoutError (no head), aiohttp.ClientError or OSError."""
        headers = self._headers(encodings, last_id)
        started_at = asyncio.get_running_loop().time()
        return ProbeStream(await self._request(hdrs.METH_GET, self._target.url, headers), started_at)

    async def fetch_head(self) -> ResponseHead | None:
        """Send a HEAD request; None without a response."""
        return await self._request_head(hdrs.METH_HEAD, self._headers(BROWSER_ENCODINGS))

    async def send_preflight(self) -> ResponseHead | None:
        """Send the preflight of a fetch with headers, which has no token; None without a response."""
        headers: dict[str, str] = {
            hdrs.ORIGIN: self._target.origin or "",
            hdrs.ACCESS_CONTROL_REQUEST_METHOD: hdrs.METH_GET,
            hdrs.ACCESS_CONTROL_REQUEST_HEADERS: ",".join(PREFLIGHT_HEADERS),
        }
        return await self._request_head(hdrs.METH_OPTIONS, headers)

    async def follow_redirects(self, location: str) -> str | None:
        """Return the last URL of redirects, or None. The token is not sent: they may leave the site."""
        url = self._target.url
        for _ in range(MAX_REDIRECTS):
            try:
                url = urljoin(url, location)
                response = await self._request(hdrs.METH_GET, url, {hdrs.ACCEPT: "text/event-stream"})
            except (ValueError, *CONNECTION_ERRORS):
                return None
            response.close()
            if response.status not in REDIRECTS:
                return url
            location = response.headers.get(hdrs.LOCATION, "")
        return None

    def _headers(self, encodings: str, last_id: str = "") -> dict[str, str]:
        headers = stream_headers(self._target.token, last_id) | {hdrs.ACCEPT_ENCODING: encodings}
        return headers if self._target.origin is None else headers | {hdrs.ORIGIN: self._target.origin}

    async def _request_head(self, method: str, headers: dict[str, str]) -> ResponseHead | None:
        try:
            response = await self._request(method, self._target.url, headers)
        except CONNECTION_ERRORS:
            return None
        response.close()
        return _response_head(response)

    async def _request(self, method: str, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        async with asyncio.timeout(self._timeouts.response_seconds):
            return await self._session.request(method, url, headers=headers, allow_redirects=False)


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding in ("gzip", "deflate"):
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_ERROR_BODY_BYTES)
        except zlib.error:
            return b""
    return b"" if encoding else body[:MAX_ERROR_BODY_BYTES]


def _response_head(response: aiohttp.ClientResponse) -> ResponseHead:
    pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
    return ResponseHead(response.status, pairs)
