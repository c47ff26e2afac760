"""The first protocol of a connection: answers requests for streams itself, and gives all others to aiohttp.

What opening a stream costs is what a herd costs. aiohttp's task, request, router and response are most of it,
and a stream needs none of them. So the bytes of a connection come here first. Those of a ``GET /events`` go
through aiohttp's own parser and the same decision as everywhere (`SubscribeHandler`), and the answer leaves with the
first block in one write. Whatever is not plainly that, down to a request with a body, goes with all of its
bytes to aiohttp's protocol, which never knows the difference.
"""

import asyncio
import re
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import aiohttp
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.auth.jwt import MAX_TOKEN_CHARS, token_too_long
from gateway.core.errors import GatewayError
from gateway.http.aiohttp_protocol import SUPPORTED_HTTP_VERSIONS
from gateway.http.paths import stream_path_pattern
from gateway.http.request import StreamRequest
from gateway.http.routes.subscribe import AccessCheck, SubscribeHandler
from gateway.hub.replay import ResumePoint
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER
from gateway.streams.registry import StreamSlot

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
"""Bytes of a request's head that are waited for here; aiohttp says what is wrong with a longer one."""

LINGER_SECONDS = 1.0
"""Seconds that the rest of a refused request is read, so that its sender sees the answer and not a reset."""

_LONG_TOKEN = re.compile(rb"\r\nauthorization:[ \t]*bearer[ \t][^\r\n]{%d}" % MAX_TOKEN_CHARS, re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
_UNSUPPORTED_HEADERS = (hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING, hdrs.EXPECT, hdrs.UPGRADE)


class HeadParser:
    """aiohttp's parser, used again for each head that is one whole request without a body."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: HttpRequestParser | None = None

    def is_compatible(self) -> bool:
        """Tell whether aiohttp's parser, which is no documented part of it, does what is needed here.

        The log has why not.
        """
        try:
            for _ in range(2):  # the second time by the parser of the first
                message = self.parse(_SAMPLE_REQUEST)
                assert message is not None, "it reads no message"
                ask = StreamRequest.from_parsed_message(
                    message, UNKNOWN_CALLER, lambda name: None, stream_path_pattern("")
                )
                assert ask is not None, "it reads no request"
                read = (
                    ask.method,
                    ask.channels,
                    ask.is_chunked,
                    ask.uri,
                    ask.forwarded_for,
                    ask.headers["cookie"],
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
        """Return the first request, or None where aiohttp's own protocol should read it."""
        parser = self._parser
        if parser is None:
            protocol = BaseProtocol(self._loop, None)
            parser = HttpRequestParser(protocol, self._loop, 2**16, auto_decompress=False)
        self._parser = None  # whatever it was left in the middle of ends with it
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
        # Requests behind the first are not looked at: a stream never ends in another answer.
        return message


class ConnectionObserver(Protocol):
    """Knows the connections of a port and their deadlines: `gateway.http.listener.Listener`."""

    head_parser: HeadParser

    def on_connect(self, protocol: "FastPathProtocol") -> None:
        """Register a new connection."""

    def on_close(self, protocol: "FastPathProtocol") -> None:
        """Forget a connection. Harmless when repeated."""

    def on_request(self, protocol: "FastPathProtocol", *, is_admitted: bool) -> None:
        """Replace the deadline of a connection whose request is complete."""

    def make_aiohttp_protocol(self, protocol: "FastPathProtocol") -> web.RequestHandler:
        """Return aiohttp's protocol for a request that the fast path does not answer."""


class FastPathProtocol(asyncio.Protocol):
    """One connection until it is known what it wants."""

    __slots__ = (
        "__weakref__",
        "_head",
        "_is_refused",
        "_listener",
        "_opening_task",
        "_subscribe_handler",
        "caller",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, listener: ConnectionObserver, subscribe_handler: SubscribeHandler | None) -> None:
        self._listener = listener
        self._subscribe_handler = subscribe_handler
        self._head = b""
        self._opening_task: asyncio.Task[None] | None = None
        self._is_refused = False
        self.caller = UNKNOWN_CALLER
        """Who is at the other end; its listener knows."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._listener.on_connect(self)

    def data_received(self, data: bytes) -> None:
        if self._opening_task is not None or self._is_refused:
            return  # its stream is about to open, or nothing will, and nothing is expected meanwhile
        head = self._head = self._head + data if self._head else data
        start = b"" if self._subscribe_handler is None else self._subscribe_handler.request_prefix
        if self._subscribe_handler is None or not head.startswith(start[: len(head)]):
            self._hand_to_aiohttp()
        elif _HEAD_END in head or len(head) > MAX_HEAD_BYTES:
            ask = self._parse_request(head) if _HEAD_END in head else None
            if ask is not None:
                self._handle_request(self._subscribe_handler, ask)
            elif (long := _LONG_TOKEN.search(head)) is not None:
                self._refuse_long_token(self._subscribe_handler, head[: long.start()])
            else:
                self._hand_to_aiohttp()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.on_close(self)
        if self._opening_task is not None:
            self._opening_task.cancel()

    @property
    def opening_task(self) -> "asyncio.Task[None] | None":
        """The task that waits for the log; None while there is nothing to wait for."""
        return self._opening_task

    def force_close(self) -> None:
        """End the connection now."""
        self.transport.abort()

    def _hand_to_aiohttp(self) -> None:
        """Let aiohttp have the connection and everything that came on it."""
        handler = self._listener.make_aiohttp_protocol(self)
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        handler.data_received(self._head)

    def _parse_request(self, head: bytes) -> StreamRequest | None:
        message = self._listener.head_parser.parse(head)
        subscribe = self._subscribe_handler
        if message is None or subscribe is None:
            return None
        return StreamRequest.from_parsed_message(
            message, self.caller, subscribe.catalog.resolve, subscribe.path_pattern
        )

    def _handle_request(self, subscribe_handler: SubscribeHandler, request: StreamRequest) -> None:
        self._head = b""
        admitted = None
        try:
            wanted = subscribe_handler.authorize(request)
            if wanted.grant is not None:
                admitted = subscribe_handler.admit(request, wanted, wanted.grant)
                place, start = admitted
                if not place.quota.needs_reservation:
                    opening = subscribe_handler.streams.try_cached_start(place.subscription, start)
                    if opening is not None:
                        self._listener.on_close(self)
                        subscribe_handler.open_on_transport(request, place, opening, self.transport)
                        return
            self._listener.on_request(self, is_admitted=admitted is not None)
            self._opening_task = asyncio.create_task(
                self._open_async(subscribe_handler, request, wanted, admitted), name="open stream"
            )
            if admitted is not None:  # also of a task that was cancelled before it began
                self._opening_task.add_done_callback(partial(_release_slot, admitted[0]))
            admitted = None
        except GatewayError as error:
            self._refuse(subscribe_handler, request, error)
        except Exception:
            self._abort_on_bug(request)
        finally:
            if admitted is not None:
                admitted[0].release()

    async def _open_async(
        self,
        subscribe_handler: SubscribeHandler,
        request: StreamRequest,
        access: AccessCheck,
        admitted: tuple[StreamSlot, ResumePoint] | None,
    ) -> None:
        """Open the stream once everybody was asked: about the client, and what it missed."""
        try:
            if admitted is None:
                admitted = await subscribe_handler.authorize_and_admit(request, access)
                self._listener.on_request(self, is_admitted=True)
            place, start = admitted
            opening = await subscribe_handler.prepare(place, start)
        except GatewayError as error:
            self._refuse(subscribe_handler, request, error)
            return
        except Exception:
            self._abort_on_bug(request)
            return
        self._listener.on_close(self)
        if self.transport.is_closing():
            place.release()
        else:
            subscribe_handler.open_on_transport(request, place, opening, self.transport)

    def _refuse_long_token(self, subscribe_handler: SubscribeHandler, head_before_token: bytes) -> None:
        """Say what is wrong with a token that is longer than any header that is read."""
        ask = self._parse_request(head_before_token + _HEAD_END)
        if ask is None:
            self._hand_to_aiohttp()
            return
        error: GatewayError = token_too_long()
        try:
            subscribe_handler.check_rate(ask)
        except GatewayError as caught:
            error = caught
        self.transport.write(subscribe_handler.refuse(ask, error).encode_closing())
        self._head, self._is_refused = b"", True
        # The rest is read and dropped, or its sender would see a reset and no answer.
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self.transport.close)

    def _abort_on_bug(self, request: StreamRequest) -> None:
        log.exception("request_failed", method=request.method, route="/events")
        self.transport.abort()

    def _refuse(
        self, subscribe_handler: SubscribeHandler, request: StreamRequest, error: GatewayError
    ) -> None:
        self.transport.write(subscribe_handler.refuse(request, error).encode_closing())
        self.transport.close()


def _release_slot(slot: StreamSlot, _: object) -> None:
    slot.release()
