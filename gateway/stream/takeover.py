"""Taking a connection over from aiohttp.

aiohttp answers the request as usual, so middlewares, hooks and CORS are its own and the library's.
Then the transport gets another protocol object and aiohttp's is retired as if the client had left:
its task ends, its request is freed, and what remains of a stream is a `Connection`.

Three things are needed of aiohttp beyond its documented interface, and ``tests/stream/test_takeover.py``
pins them: a response that buffers its headers until the first write (so that both leave in one segment),
``connection_lost`` as the end of a `web.RequestHandler`, and that it does not close a transport that is
no longer its own.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from aiohttp import web

T = TypeVar("T", bound=asyncio.Protocol)


class _Handover(web.StreamResponse):
    """A response whose body somebody else writes and ends."""

    _send_headers_immediately = False

    async def write_eof(self, data: bytes = b"") -> None:
        pass


async def take_over(
    request: web.Request,
    headers: Mapping[str, str],
    first: bytes,
    make: Callable[[], T],
) -> tuple[web.StreamResponse, T | None]:
    """Answer 200 with ``first`` as the beginning of the body, then hand the transport to ``make()``.

    Returns the response, for aiohttp, and the new protocol, or None where the client is gone already.
    ``first`` must not be empty. The body is chunked for HTTP/1.1, and the new protocol goes on in the
    same framing. Cancelling before the handover leaves everything to aiohttp; there is no await after it.
    """
    response = _Handover(headers=headers)
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
    successor = make()
    transport.set_protocol(successor)
    protocol.transport = None
    protocol.connection_lost(None)
    successor.connection_made(transport)
    if not transport.is_reading():  # aiohttp pauses behind pipelined requests; a close must be seen
        transport.resume_reading()
    return response, successor
