"""A tiny server that sends given bytes at given times."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
HELLO = b":\n\n"

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""What it does with a connection, once the request has come."""


def chunk(data: bytes) -> bytes:
    """Frame as RFC 9112, 7.1 says."""
    return b"%x\r\n" % len(data) + data + b"\r\n"


async def send(writer: asyncio.StreamWriter, data: bytes, pause: float = 0.02) -> None:
    """Send bytes, and let them arrive as a read of their own."""
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(pause)


@contextlib.asynccontextmanager
async def odd_server(script: Script) -> AsyncIterator[int]:
    """Serve the script on a port of loopback, and give the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await script(writer)
        writer.close()

    tasks: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            # A client may go before it asks.
            if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError | EOFError):
                raise ended
