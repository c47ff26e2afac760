"""Takes over the connection of a request from aiohttp, to make it a stream.

aiohttp answers the request as usual, with its middlewares and CORS. Then the transport gets another protocol
object, and aiohttp's is detached as if the client had left: its task ends, its request is freed, and only the
stream's own protocol object is left.

This needs three properties of aiohttp beyond its documented interface, which
``tests/streams/test_takeover.py`` checks: a response that buffers its headers until the first write (so that
both leave in one segment), ``connection_lost`` as the end of a `web.RequestHandler`, and that this does not
close a transport that is no longer its own. `can_detach_handler` tries the last two at the start. Without
them aiohttp's task waits for the stream's end, which costs memory and a timer per stream.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

import aiohttp
import structlog
from aiohttp import web

from gateway.observability.log_throttle import LogThrottle

log = structlog.get_logger("gateway.stream")
_log_throttle = LogThrottle()

T = TypeVar("T", bound=asyncio.Protocol)


CLOSE_POLL_SECONDS = 1.0
"""How often aiohttp's task checks whether the stream is over, if it has to wait for that."""


class _HandoverResponse(web.StreamResponse):
    """A response whose body a stream writes. ``kept_handler``: what must wait for the stream's end."""

    _send_headers_immediately = False
    kept_handler: tuple[web.RequestHandler, asyncio.Transport] | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        if self.kept_handler is None:
            return
        handler, transport = self.kept_handler
        while not transport.is_closing():  # noqa: ASYNC110 -- a stream has no event of its end to wait for
            await asyncio.sleep(CLOSE_POLL_SECONDS)
        # The transport reported its end to the new protocol; aiohttp's is notified once its task is over.
        asyncio.get_running_loop().call_soon(handler.connection_lost, None)


class _DummyTransport(asyncio.Transport):
    """Does nothing but record whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


async def can_detach_handler(server: web.Server) -> bool:
    """Tell whether aiohttp's protocol can be detached without closing the connection; log why not."""
    dummy, why = _DummyTransport(), "it closes the connection"
    try:
        handler = web.RequestHandler(server, loop=asyncio.get_running_loop())
        handler.connection_made(dummy)
        await asyncio.sleep(0)  # its task waits for a request by now
        _detach_handler(handler)
        for _ in range(5):  # until its task has ended and the server no longer counts it
            await asyncio.sleep(0)
        if not dummy.is_closed:
            return True
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    if _log_throttle.should_log("retire") is None:  # each port tries it
        return False
    note = "streams whose requests aiohttp handles keep its task, which takes memory"
    log.warning("fast_path_disabled", version=aiohttp.__version__, error=why, note=note)
    return False


def _detach_handler(handler: web.RequestHandler) -> None:
    """End aiohttp's protocol as if its client had left."""
    handler.transport = None
    handler.connection_lost(None)


async def take_over(
    request: web.Request,
    headers: Mapping[str, str],
    first: bytes,
    create_protocol: Callable[[], T],
) -> tuple[web.StreamResponse, T | None]:
    """Answer 200 with ``first`` as the beginning of the body, then attach ``create_protocol()``.

    Returns the response, for aiohttp, and the new protocol, or None if the client is already gone.
    ``first`` must not be empty. The body is chunked for HTTP/1.1, and the new protocol continues in the
    same framing. Cancelling before the handover leaves everything to aiohttp; there is no await after it.
    """
    response = _HandoverResponse(headers=headers)
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        await response.write(first)
    except ConnectionError:
        return response, None
    protocol, transport = request.protocol, request.transport
    if transport is None or transport.is_closing():
        return response, None
    successor = create_protocol()
    transport.set_protocol(successor)
    if getattr(protocol, "can_detach", True):
        _detach_handler(protocol)
    else:
        response.kept_handler = protocol, transport
        response.force_close()
        release_connection = getattr(protocol, "release_connection", None)
        if release_connection is not None:
            release_connection()
    successor.connection_made(transport)
    if not transport.is_reading():  # aiohttp pauses behind pipelined requests; a close must be seen
        transport.resume_reading()
    return response, successor
