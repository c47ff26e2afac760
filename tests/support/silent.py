"""A server that accepts connections and never answers: an upstream, an issuer or a log that is slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Silent:
    """One that listens on loopback."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold a connection until the client ends it."""
        self.connections += 1
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def silent_server() -> AsyncIterator[Silent]:
    """Run one for the length of a ``with`` block."""
    silent = Silent()
    server = await asyncio.start_server(silent.keep, "127.0.0.1", 0)
    silent.port = server.sockets[0].getsockname()[1]
    try:
        yield silent
    finally:
        server.close()
