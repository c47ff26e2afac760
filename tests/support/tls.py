"""A certificate for 127.0.0.1, made for one test run: the benchmark's; and TLS in front of what has none."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from bench.servers.certificate import certificate as make_certificate

__all__ = ["make_certificate", "serving", "trusting", "tunnel"]


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return a client context that trusts just this certificate."""
    return ssl.create_default_context(cafile=str(certificate))


def serving(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


@contextlib.asynccontextmanager
async def tunnel(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Take TLS off connections on their way to a port, and yield the port that they come to.

    A Kafka server that says where it is says the port that it knows: the other one is put in its place.
    """
    listening = 0

    async def copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, old: bytes = b"", new: bytes = b""
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data.replace(old, new) if old else data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        known, told = (b"127.0.0.1" + each.to_bytes(4, "big") for each in (port, listening))
        await asyncio.gather(copy(reader, outer), copy(inner, writer, known, told))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    listening = server.sockets[0].getsockname()[1]
    try:
        yield listening
    finally:
        server.close()
