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
from gateway.cli.doctor.answer import REDIRECTS, Head
from gateway.cli.doctor.cors import ASKED
from gateway.cli.doctor.target import Target
from gateway.cli.doctor.timeouts import Patience
from gateway.cli.doctor.transcript import Ear, End, Heard

BROWSER_ENCODINGS = "gzip, deflate, br, zstd"
"""What browsers offer with every request."""

MAX_HOPS = 10
"""Redirects that are followed; browsers follow 20."""

_MAX_BODY = 64 * 1024
"""Bytes of an error's body that are read."""

_LOST = (aiohttp.ClientError, OSError)


class Stream:
    """An answer whose head has come. Times are in seconds since the request."""

    def __init__(self, response: aiohttp.ClientResponse, began: float) -> None:
        self._response = response
        self._began = began
        self.head_at = self._now()
        self.head = _head(response)
        self.ear = Ear(self.head_at)

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._began

    async def hear(self, until: float, enough: Callable[[], bool] = lambda: False) -> Heard:
        """Listen until that many seconds after the request, or until ``enough``. Cancelling is safe."""
        try:
            async with asyncio.timeout_at(self._began + until):
                while not enough():
                    data = await self._response.content.readany()
                    if not data:
                        return self.ear.heard(self._now(), End.ENDED)
                    self.ear.feed(data, self._now())
        except TimeoutError:
            pass
        except _LOST:
            return self.ear.heard(self._now(), End.CUT)
        return self.ear.heard(self._now(), End.TIME)

    async def body(self, seconds: float) -> bytes:
        """Return what comes of the body within some seconds, or nothing of one that cannot be read."""
        body = b""
        try:
            async with asyncio.timeout(seconds):
                while len(body) < _MAX_BODY and (data := await self._response.content.readany()):
                    body += data
        except (TimeoutError, *_LOST):
            pass
        return _plain(body, self.head.get("Content-Encoding").lower())

    def close(self) -> None:
        """End the connection."""
        self._response.close()


class Client:
    """Asks for one target. Every request has a connection of its own, as a reconnect has."""

    def __init__(self, target: Target, context: ssl.SSLContext, patience: Patience) -> None:
        self._target = target
        self._patience = patience
        context.set_alpn_protocols(["http/1.1"])  # aiohttp speaks nothing newer; the handshake offered h2
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # an answer in a coding that is not installed would be no answer
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience.connect),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def stream(self, *, encodings: str = "identity", last_id: str = "") -> Stream:
        """Ask for the stream. Raises TimeoutError (no head), aiohttp.ClientError or OSError."""
        headers = {
            **self._page(),
            hdrs.ACCEPT: "text/event-stream",
            hdrs.ACCEPT_ENCODING: encodings,
            hdrs.CACHE_CONTROL: "no-cache",
        }
        if last_id:
            headers["Last-Event-ID"] = last_id
        began = asyncio.get_running_loop().time()
        return Stream(await self._answer(hdrs.METH_GET, self._target.url, headers), began)

    async def head(self) -> Head | None:
        """Ask for the head alone; None if it does not come."""
        headers = self._page()
        headers[hdrs.ACCEPT] = "text/event-stream"
        headers[hdrs.ACCEPT_ENCODING] = BROWSER_ENCODINGS
        return await self._head_only(hdrs.METH_HEAD, headers)

    async def preflight(self) -> Head | None:
        """Ask as browsers do before a fetch with headers, without a token; None without answer."""
        headers: dict[str, str] = {
            hdrs.ORIGIN: self._target.origin or "",
            hdrs.ACCESS_CONTROL_REQUEST_METHOD: hdrs.METH_GET,
            hdrs.ACCESS_CONTROL_REQUEST_HEADERS: ",".join(ASKED),
        }
        return await self._head_only(hdrs.METH_OPTIONS, headers)

    async def follow(self, location: str) -> str | None:
        """Return where redirects end, or None. The token is not sent: they may leave the site."""
        url = self._target.url
        for _ in range(MAX_HOPS):
            try:
                url = urljoin(url, location)
                response = await self._answer(hdrs.METH_GET, url, {hdrs.ACCEPT: "text/event-stream"})
            except (ValueError, TimeoutError, *_LOST):
                return None
            response.close()
            if response.status not in REDIRECTS:
                return url
            location = response.headers.get(hdrs.LOCATION, "")
        return None

    def _page(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        if self._target.origin is not None:
            headers[hdrs.ORIGIN] = self._target.origin
        if self._target.token is not None:
            headers[hdrs.AUTHORIZATION] = f"Bearer {self._target.token}"
        return headers

    async def _head_only(self, method: str, headers: dict[str, str]) -> Head | None:
        try:
            response = await self._answer(method, self._target.url, headers)
        except (TimeoutError, *_LOST):
            return None
        response.close()
        return _head(response)

    async def _answer(self, method: str, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        own = {hdrs.USER_AGENT: f"sse-gateway-doctor/{__version__}"}
        async with asyncio.timeout(self._patience.answer):
            return await self._session.request(method, url, headers=own | headers, allow_redirects=False)


def _plain(body: bytes, encoding: str) -> bytes:
    if encoding in ("gzip", "deflate"):
        try:
            return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _MAX_BODY)
        except zlib.error:
            return b""
    return b"" if encoding else body[:_MAX_BODY]


def _head(response: aiohttp.ClientResponse) -> Head:
    pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.raw_headers)
    return Head(response.status, pairs)
