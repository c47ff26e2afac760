"""The first protocol of a connection: answers requests for streams itself, and gives all others to aiohttp.

What opening a stream costs is what a herd costs. aiohttp's task, request, router and response are most of it,
and a stream needs none of them. So the bytes of a connection come here first. Those of a ``GET /events`` go
through aiohttp's own parser and the same decision as everywhere (`Subscribe`), and the answer leaves with the
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

from gateway.auth.jwt import MAX_TOKEN, too_long
from gateway.core.errors import GatewayError
from gateway.http.paths import stream_path
from gateway.http.protocol import SPOKEN
from gateway.http.request import Ask
from gateway.http.routes.subscribe import Subscribe, Wanted
from gateway.hub.replay import Start
from gateway.streams.quotas.limits import UNKNOWN
from gateway.streams.registry import Place

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

try:
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http_parser import HttpRequestParser
except ImportError:  # a newer aiohttp: see `Heads.can_parse`
    BaseProtocol = HttpRequestParser = None  # type: ignore[assignment,misc]

log = structlog.get_logger("gateway.http")

_TRIAL = b"GET /events/a?channel=b HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: a=b\r\n\r\n"

MAX_HEAD = 16 * 1024
"""Bytes of a request's head that are waited for here; aiohttp says what is wrong with a longer one."""

LINGER = 1.0
"""Seconds that the rest of a refused request is read, so that its sender sees the answer and not a reset."""

_LONG_TOKEN = re.compile(rb"\r\nauthorization:[ \t]*bearer[ \t][^\r\n]{%d}" % MAX_TOKEN, re.IGNORECASE)
_END = b"\r\n\r\n"
_MORE = (hdrs.CONTENT_LENGTH, hdrs.TRANSFER_ENCODING, hdrs.EXPECT, hdrs.UPGRADE)


class Heads:
    """aiohttp's parser, used again for each head that is one whole request without a body."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: HttpRequestParser | None = None

    def can_parse(self) -> bool:
        """Tell whether aiohttp's parser, which is no documented part of it, does what is needed here.

        The log has why not.
        """
        try:
            for _ in range(2):  # the second time by the parser of the first
                message = self.parse(_TRIAL)
                assert message is not None, "it reads no message"
                ask = Ask.of_message(message, UNKNOWN, lambda name: None, stream_path(""))
                assert ask is not None, "it reads no request"
                read = (ask.method, ask.channels, ask.chunked, ask.uri, ask.forwarded, ask.headers["cookie"])
                sent = _TRIAL.split()[1].decode()
                assert read == ("GET", ("a", "b"), True, sent, "192.0.2.1", "a=b"), read
        except Exception as error:
            log.warning(
                "aiohttp_changed",
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
        if message.version not in SPOKEN:
            return None
        for name in _MORE:
            if name in headers:
                return None
        # After a message that closes its connection the parser would read no other.
        if len(messages) == 1 and head.endswith(_END) and not message.should_close:
            self._parser = parser
        # Requests behind the first are not looked at: a stream never ends in another answer.
        return message


class Observer(Protocol):
    """Knows the connections of a port and their deadlines: `gateway.http.listener.Listener`."""

    heads: Heads

    def meets(self, front: "Front") -> None:
        """Register a new connection."""

    def leaves(self, front: "Front") -> None:
        """Forget a connection. Harmless when repeated."""

    def answers(self, front: "Front", *, admitted: bool) -> None:
        """Replace the deadline of a connection whose request is complete."""

    def handler_for(self, front: "Front") -> web.RequestHandler:
        """Return aiohttp's protocol for a request that the fast path does not answer."""


class Front(asyncio.Protocol):
    """One connection until it is known what it wants."""

    __slots__ = (
        "__weakref__",
        "_head",
        "_is_done",
        "_listener",
        "_subscribe",
        "_task",
        "caller",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, listener: Observer, subscribe: Subscribe | None) -> None:
        self._listener = listener
        self._subscribe = subscribe
        self._head = b""
        self._task: asyncio.Task[None] | None = None
        self._is_done = False
        self.caller = UNKNOWN
        """Who is at the other end; its listener knows."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._listener.meets(self)

    def data_received(self, data: bytes) -> None:
        if self._task is not None or self._is_done:
            return  # its stream is about to open, or nothing will, and nothing is expected meanwhile
        head = self._head = self._head + data if self._head else data
        start = b"" if self._subscribe is None else self._subscribe.start
        if self._subscribe is None or not head.startswith(start[: len(head)]):
            self._hand_over()
        elif _END in head or len(head) > MAX_HEAD:
            ask = self._ask(head) if _END in head else None
            if ask is not None:
                self._answer(self._subscribe, ask)
            elif (long := _LONG_TOKEN.search(head)) is not None:
                self._refuse_token(self._subscribe, head[: long.start()])
            else:
                self._hand_over()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.leaves(self)
        if self._task is not None:
            self._task.cancel()

    @property
    def opening(self) -> "asyncio.Task[None] | None":
        """The task that waits for the log; None while there is nothing to wait for."""
        return self._task

    def force_close(self) -> None:
        """End the connection now."""
        self.transport.abort()

    def _hand_over(self) -> None:
        """Let aiohttp have the connection and everything that came on it."""
        handler = self._listener.handler_for(self)
        self.transport.set_protocol(handler)
        handler.connection_made(self.transport)
        handler.data_received(self._head)

    def _ask(self, head: bytes) -> Ask | None:
        message = self._listener.heads.parse(head)
        subscribe = self._subscribe
        if message is None or subscribe is None:
            return None
        return Ask.of_message(message, self.caller, subscribe.catalog.resolve, subscribe.path)

    def _answer(self, subscribe: Subscribe, ask: Ask) -> None:
        self._head = b""
        admitted = None
        try:
            wanted = subscribe.want(ask)
            if wanted.grant is not None:
                admitted = subscribe.admit(ask, wanted, wanted.grant)
                place, start = admitted
                if not place.hold.must_confirm:
                    opening = subscribe.streams.opening_at_once(place.subscription, start)
                    if opening is not None:
                        self._listener.leaves(self)
                        subscribe.open(ask, place, opening, self.transport)
                        return
            self._listener.answers(self, admitted=admitted is not None)
            self._task = asyncio.create_task(
                self._open_later(subscribe, ask, wanted, admitted), name="open stream"
            )
            if admitted is not None:  # also of a task that was cancelled before it began
                self._task.add_done_callback(partial(_release, admitted[0]))
            admitted = None
        except GatewayError as error:
            self._refuse(subscribe, ask, error)
        except Exception:
            self._fail(ask)
        finally:
            if admitted is not None:
                admitted[0].release()

    async def _open_later(
        self, subscribe: Subscribe, ask: Ask, wanted: Wanted, admitted: tuple[Place, Start] | None
    ) -> None:
        """Open the stream once everybody was asked: about the client, and what it missed."""
        try:
            if admitted is None:
                admitted = await subscribe.admit_later(ask, wanted)
                self._listener.answers(self, admitted=True)
            place, start = admitted
            opening = await subscribe.ready(place, start)
        except GatewayError as error:
            self._refuse(subscribe, ask, error)
            return
        except Exception:
            self._fail(ask)
            return
        self._listener.leaves(self)
        if self.transport.is_closing():
            place.release()
        else:
            subscribe.open(ask, place, opening, self.transport)

    def _refuse_token(self, subscribe: Subscribe, before: bytes) -> None:
        """Say what is wrong with a token that is longer than any header that is read."""
        ask = self._ask(before + _END)
        if ask is None:
            self._hand_over()
            return
        error: GatewayError = too_long()
        try:
            subscribe.hurry(ask)
        except GatewayError as caught:
            error = caught
        self.transport.write(subscribe.refuse(ask, error).last())
        self._head, self._is_done = b"", True
        # The rest is read and dropped, or its sender would see a reset and no answer.
        asyncio.get_running_loop().call_later(LINGER, self.transport.close)

    def _fail(self, ask: Ask) -> None:
        log.exception("request_failed", method=ask.method, route="/events")
        self.transport.abort()

    def _refuse(self, subscribe: Subscribe, ask: Ask, error: GatewayError) -> None:
        self.transport.write(subscribe.refuse(ask, error).last())
        self.transport.close()


def _release(place: Place, _: object) -> None:
    place.release()
