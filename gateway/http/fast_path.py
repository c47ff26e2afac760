"""The first protocol of each connection: opens streams itself, and hands all other requests to aiohttp.

The cost of opening a stream is the cost of a herd (rows storm and herd of the benchmark), and most of it
would be aiohttp's task, request, router and response, which a stream does not need. So the first bytes of a
connection arrive here. A ``GET /events`` is read by aiohttp's own parser and decided by
`SubscribeHandler.open_stream`, like every other; the response leaves together with the first block in one
write. Any other request, even one for a stream that has a body, goes with all of its bytes to aiohttp's
protocol, which cannot tell the difference.
"""

import asyncio
import re
from typing import TYPE_CHECKING, Protocol, cast

import aiohttp
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.auth.jwt import MAX_TOKEN_CHARS, token_too_long
from gateway.core.errors import GatewayError
from gateway.http.aiohttp_protocol import SUPPORTED_HTTP_VERSIONS
from gateway.http.request import RequestParser, StreamRequest
from gateway.http.routes.subscribe import SubscribeHandler
from gateway.observability.eager import run_eagerly
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, Caller

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

try:
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http_parser import HttpRequestParser
except ImportError:  # a newer aiohttp: see `HeadParser.is_compatible`
    BaseProtocol = HttpRequestParser = None  # type: ignore[assignment,misc]

log = structlog.get_logger("gateway.http")

_SAMPLE_REQUEST = (
    b"GET /events/a?channel=b HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: a=b\r\n\r\n"
)

MAX_HEAD_BYTES = 16 * 1024
"""Longest head of a request that the fast path waits for, in bytes; aiohttp answers longer ones."""

LINGER_SECONDS = 1.0
"""Seconds that the rest of a refused request is read, so that its sender sees no reset."""

_LONG_TOKEN = re.compile(rb"\r\nauthorization:[ \t]*bearer[ \t][^\r\n]{%d}" % MAX_TOKEN_CHARS, re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_UNSUPPORTED_HEADERS = (hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING, hdrs.EXPECT, hdrs.UPGRADE)


class HeadParser:
    """aiohttp's parser for heads of requests without a body.

    One parser serves many connections (row storm).
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: HttpRequestParser | None = None

    def is_compatible(self) -> bool:
        """Return whether aiohttp's parser, which is undocumented, works as needed here; if not, log why."""
        forwarded: list[str] = []

        def resolve_forwarded(peer: Caller, addresses: str) -> Caller:
            forwarded.append(addresses)
            return peer

        parser = RequestParser(lambda name: None, resolve_forwarded)
        try:
            for _ in range(2):  # the second time by the parser of the first
                message = self.parse(_SAMPLE_REQUEST)
                assert message is not None, "it reads no message"
                request = parser.from_message(message, UNKNOWN_CALLER)
                assert request is not None, "it reads no request"
                read = (
                    request.method,
                    request.channels,
                    request.is_chunked,
                    request.uri,
                    forwarded.pop(),
                    request.headers["cookie"],
                )
                sent = _SAMPLE_REQUEST.split()[1].decode()
                assert read == ("GET", ("a", "b"), True, sent, "192.0.2.1", "a=b"), read
        except Exception as error:
            log.warning(
                "fast_path_disabled",
                version=aiohttp.__version__,
                error=f"{type(error).__name__}: {error}",
                note="aiohttp reads all requests: to open a stream costs three times the CPU",
            )
            return False
        return True

    def parse(self, head: bytes) -> "RawRequestMessage | None":
        """Return the first request, or None if aiohttp's own protocol must read it."""
        parser = self._parser
        if parser is None:
            protocol = BaseProtocol(self._loop, None)
            parser = HttpRequestParser(protocol, self._loop, 2**16, auto_decompress=False)
        self._parser = None  # a parser that stops within a request cannot read another
        try:
            messages, _, _ = parser.feed_data(head)
        except HttpProcessingError:
            return None
        message = messages[0][0]
        headers = message.headers
        if message.version not in SUPPORTED_HTTP_VERSIONS:
            return None
        for name in _UNSUPPORTED_HEADERS:
            if name in headers:
                return None
        # After a message that closes its connection the parser would read no other.
        if len(messages) == 1 and head.endswith(_HEAD_END) and not message.should_close:
            self._parser = parser
        # Pipelined requests behind the first are dropped: no response can follow a stream.
        return message


class ConnectionObserver(Protocol):
    """Tracks the connections of a port and their deadlines: `gateway.http.listener.Listener`."""

    head_parser: HeadParser

    def on_connect(self, protocol: "FastPathProtocol") -> None:
        """Register a new connection."""

    def on_close(self, protocol: "FastPathProtocol") -> None:
        """Forget a connection. Harmless when repeated."""

    def on_request(self, protocol: "FastPathProtocol", *, is_admitted: bool) -> None:
        """End the deadline of a connection whose request waits; uncount it if it counts as a stream."""

    def make_aiohttp_protocol(self, protocol: "FastPathProtocol") -> web.RequestHandler:
        """Return aiohttp's protocol for a request that the fast path does not answer."""


class FastPathProtocol(asyncio.Protocol):
    """A connection until its request is complete."""

    __slots__ = (
        "__weakref__",
        "_head",
        "_is_admitted",
        "_is_refused",
        "_listener",
        "_subscribe_handler",
        "caller",
        "opening_task",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, listener: ConnectionObserver, subscribe_handler: SubscribeHandler | None) -> None:
        self._listener = listener
        self._subscribe_handler = subscribe_handler
        self._head = b""
        self._is_admitted = self._is_refused = False
        self.opening_task: asyncio.Task[None] | None = None
        """The task that opens the stream; None if there is nothing to wait for."""
        self.caller = UNKNOWN_CALLER
        """The other end of the connection, as the listener counts it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._listener.on_connect(self)

    def data_received(self, data: bytes) -> None:
        if self.opening_task is not None or self._is_refused:
            return  # a client sends nothing while its stream opens, nor after its refusal
        head = self._head = self._head + data if self._head else data
        handler = self._subscribe_handler
        if handler is None or not head.startswith(handler.request_prefix[: len(head)]):
            self._hand_to_aiohttp()
        elif _HEAD_END in head or len(head) > MAX_HEAD_BYTES:
            request = self._parse_request(handler, head) if _HEAD_END in head else None
            if request is not None:
                self._open(handler, request)
            elif (long := _LONG_TOKEN.search(head)) is not None:
                self._refuse_long_token(handler, head[: long.start()])
            else:
                self._hand_to_aiohttp()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.on_close(self)
        if self.opening_task is not None:
            self.opening_task.cancel()

    def force_close(self) -> None:
        """End the connection now."""
        self.transport.abort()

    def _hand_to_aiohttp(self) -> None:
        """Let aiohttp have the connection and everything that was received on it."""
        handler = self._listener.make_aiohttp_protocol(self)
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        handler.data_received(self._head)

    def _parse_request(self, handler: SubscribeHandler, head: bytes) -> StreamRequest | None:
        message = self._listener.head_parser.parse(head)
        return None if message is None else handler.parser.from_message(message, self.caller)

    def _open(self, handler: SubscribeHandler, request: StreamRequest) -> None:
        self._head = b""
        opening = run_eagerly(self._open_stream(handler, request), name="open stream")
        if opening is not None:
            self.opening_task = opening
            self._listener.on_request(self, is_admitted=self._is_admitted)

    async def _open_stream(self, handler: SubscribeHandler, request: StreamRequest) -> None:
        try:
            slot, start = await handler.open_stream(request, self._on_admitted)
            with slot:
                self._listener.on_close(self)
                if not self.transport.is_closing():
                    handler.open_on_transport(request, slot, start, self.transport)
        except GatewayError as error:
            self.transport.write(handler.refuse(request, error).encode_closing())
            self.transport.close()
        except Exception:
            log.exception("request_failed", method=request.method, route="/events")
            self.transport.abort()

    def _on_admitted(self) -> None:
        self._is_admitted = True
        if self.opening_task is not None:
            self._listener.on_request(self, is_admitted=True)

    def _refuse_long_token(self, handler: SubscribeHandler, head_before_token: bytes) -> None:
        """Refuse a token that is longer than any header that is read, with an error that says so."""
        request = self._parse_request(handler, head_before_token + _HEAD_END)
        if request is None:
            self._hand_to_aiohttp()
            return
        error: GatewayError = token_too_long()
        try:
            handler.check_rate(request)
        except GatewayError as caught:
            error = caught
        self.transport.write(handler.refuse(request, error).encode_closing())
        self._head, self._is_refused = b"", True
        # The rest is read and dropped, or its sender would see a reset and no response.
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.close)
