"""The handover from aiohttp: what it needs of aiohttp's inside, pinned."""

import asyncio
import gc
import os
import socket
import struct
from pathlib import Path

import pytest
from aiohttp import web

from gateway.streams.upgrade import take_over
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import eventually, gateway_running
from tests.support.tls import make_certificate, trusting

pytestmark = pytest.mark.both_loops


class Echo(asyncio.Protocol):
    """Notes what the transport tells it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Server:
    """An aiohttp server whose one route hands every connection over."""

    def __init__(self) -> None:
        self.taken: list[Echo] = []
        app = web.Application()
        app.router.add_get("/take", self._take)
        app.router.add_get("/plain", self._plain)
        self.runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> "Server":
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        for protocol in self.taken:
            if protocol.transport is not None:
                protocol.transport.abort()
        await self.runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        response, protocol = await take_over(
            request, {"Content-Type": "text/event-stream"}, b"first\n\n", Echo
        )
        assert protocol is not None
        self.taken.append(protocol)
        return response

    async def _plain(self, request: web.Request) -> web.Response:
        return web.Response(text="plain")


async def test_nothing_of_aiohttp_remains() -> None:
    """No connection, no task and no request object: this is where the memory per stream comes from."""
    async with Server() as server:
        tasks = len(asyncio.all_tasks())
        stream = await Stream.open(server.port, "/take")
        assert stream.status == 200
        await stream.read()
        assert stream.body == b"first\n\n"
        await eventually(lambda: server.taken)
        assert server.runner.server is not None
        await eventually(lambda: not server.runner.server.connections)  # type: ignore[union-attr]
        await eventually(lambda: len(asyncio.all_tasks()) == tasks)
        gc.collect()
        # isinstance() would ask the abstract base class of requests about each object that there is.
        assert not [item for item in gc.get_objects() if web.Request in type(item).__mro__]
        stream.close()


async def test_headers_and_first_block_leave_in_one_write() -> None:
    """One segment, so that a client has stream.open with the headers; without it a round trip is wasted."""
    async with Server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /take HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await reader.read(65536)
        assert first.endswith(b"\r\n\r\n7\r\nfirst\n\n\r\n")
        writer.transport.abort()


async def test_the_new_protocol_reads_writes_and_notices_the_close() -> None:
    """The transport is wholly ours, and a client's close is told at once, without a write."""
    async with Server() as server:
        stream = await Stream.open(server.port, "/take")
        await stream.read()
        (protocol,) = server.taken
        assert protocol.transport is not None
        protocol.transport.write(b"3\r\nabc\r\n")
        await stream.read()
        assert stream.body == b"first\n\nabc"
        stream.writer.write(b"hello")
        await eventually(lambda: protocol.received == b"hello")
        stream.writer.close()
        async with safety_net():
            await protocol.lost.wait()


@pytest.mark.parametrize("end", ["abort", "close", "reset", "fin"])
async def test_a_file_stays_the_streams_until_connection_lost(end: str) -> None:
    """Fan-out writes to files: one that was closed before its stream left could be another client's by then."""
    seen: list[int] = []

    class Watching(Echo):
        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(os.fstat(self.fd).st_ino)
            super().connection_lost(exc)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.fd = transport.get_extra_info("socket").fileno()
            self.inode = os.fstat(self.fd).st_ino

    loop = asyncio.get_running_loop()
    made: list[Watching] = []

    def make() -> Watching:
        made.append(Watching())
        return made[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    client = socket.create_connection(server.sockets[0].getsockname())
    await eventually(lambda: made and made[0].transport)
    protocol = made[0]
    assert protocol.transport is not None
    if end == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end in ("reset", "fin"):
        client.close()
    else:
        getattr(protocol.transport, end)()
    async with safety_net():
        await protocol.lost.wait()
    assert seen == [protocol.inode]
    client.close()
    server.close()


async def test_http_1_0_is_not_chunked() -> None:
    """nginx speaks HTTP/1.0 to its upstreams unless told otherwise."""
    async with Server() as server:
        stream = await Stream.open(server.port, "/take", version="1.0")
        assert "transfer-encoding" not in stream.headers
        await stream.read()
        assert stream.body == b"first\n\n"
        stream.close()


async def test_a_kept_alive_connection_can_be_taken_over() -> None:
    """A browser may have used the connection before."""
    async with Server() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"plain")
        writer.write(b"GET /take HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"first\n\n\r\n")
        assert len(server.taken) == 1
        writer.transport.abort()


async def test_clients_that_leave_in_the_handshake_leave_nothing() -> None:
    """Aborted requests are the commonest thing on a page that reloads."""
    async with gateway_running() as gateway:
        for number in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n"[: 20 + number])
            if number % 2:
                await asyncio.sleep(0)
            writer.transport.abort()
        last = await gateway.subscribe("/events/orders")  # connections are accepted in their order
        last.close()
        await eventually(
            lambda: (
                not gateway.daemon.streams.active and not gateway.daemon.public_listener.request_connections
            )
        )
        await eventually(lambda: gateway.daemon.streams._reserved_count == 0)
        await eventually(lambda: not gateway.daemon.hub.channels)


async def test_a_whole_stream_over_tls(tmp_path: Path) -> None:
    """The same over TLS: open, live events, an orderly end."""
    certificate, key = make_certificate(tmp_path)
    tls = {"certificate": str(certificate), "key": str(key), "minimum_version": "1.3"}
    async with gateway_running({"server": {"tls": tls}, "timeouts": {"heartbeat": "200ms"}}) as gateway:
        stream = await gateway.subscribe("/events/orders", ssl=trusting(certificate))
        post = f"https://127.0.0.1:{gateway.port}/hooks/hooks?topic=orders"
        async with gateway.session.post(post, data=b"1", ssl=trusting(certificate)) as answer:
            assert answer.status == 200
        assert (await stream.next()).json["payload"] == 1
        while not stream.parser.comments:
            await stream.read()
        drain = asyncio.create_task(gateway.daemon.streams.drain(600))
        await stream.rest()
        stream.writer.close()
        await drain
        assert stream.ended
        assert not stream.parser.torn


async def test_a_close_behind_pipelined_requests_is_noticed() -> None:
    """aiohttp stops reading behind a queue of requests; a stream must read, or it never sees the FIN."""
    async with gateway_running() as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(
            b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 60
        )
        await eventually(lambda: gateway.daemon.streams.active)
        writer.close()
        await eventually(lambda: not gateway.daemon.streams.active)


async def test_a_silent_tls_connection_has_the_deadline_too(tmp_path: Path) -> None:
    """A handshake that never comes is a request that never comes."""
    certificate, key = make_certificate(tmp_path)
    tls = {"certificate": str(certificate), "key": str(key)}
    async with gateway_running({"server": {"tls": tls}, "timeouts": {"request": "300ms"}}) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        async with safety_net():
            assert await reader.read() == b""
        writer.close()
