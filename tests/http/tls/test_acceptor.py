"""Handshakes that a client never completes keep no other client out, and leave nothing behind."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.http.tls import acceptor as greeting
from tests.http.tls.test_tls import tls
from tests.support.authority import Authority
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.both_loops

MOST = 20
GET = b"GET /events/orders HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setattr(greeting, "MAX_HANDSHAKES", MOST)
    return Authority(tmp_path)


@asynccontextmanager
async def patient(authority: Authority, seconds: str = "10m") -> AsyncIterator[Gateway]:
    """Run a gateway with TLS that treats loopback addresses like any client's."""
    server = {"tls": tls(authority.server()), "trusted_proxies": ["192.0.2.9"]}
    async with gateway_running({"server": server, "timeouts": {"request": seconds}}) as gateway:
        yield gateway


class Silent:
    """Connections of one address that never say a word."""

    def __init__(self) -> None:
        self.readers: list[asyncio.StreamReader] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def come(self, port: int, count: int, address: str = "127.0.0.1") -> None:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
            self.readers.append(reader)
            self._writers.append(writer)

    async def ends(self, count: int) -> None:
        """Wait until that many are closed by the other side."""
        ends = [asyncio.ensure_future(_until_the_end(reader)) for reader in self.readers]
        async with safety_net():
            while sum(end.done() for end in ends) < count:
                await asyncio.wait(
                    [end for end in ends if not end.done()], return_when=asyncio.FIRST_COMPLETED
                )
        for end in ends:
            end.cancel()

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


async def _until_the_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        await reader.read()


@asynccontextmanager
async def silence() -> AsyncIterator[Silent]:
    silent = Silent()
    try:
        yield silent
    finally:
        silent.close()


async def is_served(gateway: Gateway, client: ssl.SSLContext, address: str) -> None:
    """Get the head of a stream over TLS, from another address."""
    async with safety_net():
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, ssl=client, server_hostname="127.0.0.1", local_addr=(address, 0)
        )
        writer.write(GET)
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        writer.transport.abort()


def held(gateway: Gateway) -> int:
    """Return how many connections the limits count for the address of those that are silent."""
    peer = gateway.daemon.limits.addresses.usage_of("127.0.0.1")
    return 0 if peer is None else peer.connection_count


async def test_one_address_does_not_take_all_places(authority: Authority) -> None:
    """One client's slow handshakes, however many, do not block another client."""
    async with patient(authority) as gateway, silence() as silent:
        before = gateway.daemon.public_listener.request_connections
        await silent.come(gateway.port, 3 * MOST)
        await eventually(lambda: gateway.daemon.public_listener.request_connections == before + 3 * MOST)
        for number in range(2, 5):
            await is_served(gateway, authority.client(), f"127.0.0.{number}")
        assert await gateway.metric('tls_handshake_failures_total{reason="too_many_unfinished"}') == 3
        silent.close()
        await eventually(
            lambda: gateway.daemon.public_listener.request_connections == before and held(gateway) == 0
        )
        await is_served(gateway, authority.client(), "127.0.0.1")


async def test_a_herd_of_one_address_waits_for_its_turn(authority: Authority) -> None:
    """Clients behind one NAT that come back together all get in: waiting is not being refused."""
    async with patient(authority) as gateway:
        client = authority.client()
        await asyncio.gather(*(is_served(gateway, client, "127.0.0.1") for _ in range(5 * MOST)))
        assert await gateway.metric('tls_handshake_failures_total{reason="too_many_unfinished"}') == 0


async def test_slow_ones_end_at_a_deadline(authority: Authority) -> None:
    """Those in progress and those that wait: a client that says nothing has the time of a request."""
    async with patient(authority, "300ms") as gateway, silence() as silent:
        await silent.come(gateway.port, 2 * MOST)
        await silent.ends(2 * MOST)
        await eventually(
            lambda: gateway.daemon.public_listener.request_connections == 0 and held(gateway) == 0
        )


async def test_addresses_take_turns(authority: Authority) -> None:
    """Two that are slow have the same share, and what waits of a third is not behind all of theirs."""
    async with patient(authority) as gateway, silence() as first, silence() as second:
        await first.come(gateway.port, 2 * MOST, "127.0.0.1")
        await second.come(gateway.port, 2 * MOST, "127.0.0.2")
        public: Any = gateway.daemon.public_listener
        await eventually(lambda: len(public._tls_acceptor) == 4 * MOST - MOST // 2)
        shares = {name: len(each.handshakes) for name, each in public._tls_acceptor._addresses.items()}
        assert shares == {"127.0.0.1": MOST // 2, "127.0.0.2": MOST // 2}
        await is_served(gateway, authority.client(), "127.0.0.3")


async def test_half_of_the_room_is_for_others(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections before their handshake leave descriptors to streams that open and requests."""
    async with patient(authority) as gateway, silence() as silent:
        monkeypatch.setattr(gateway.daemon, "max_descriptors", 128 + 30)
        before = gateway.daemon.public_listener.request_connections
        await silent.come(gateway.port, 40)
        await eventually(lambda: gateway.daemon.public_listener.request_connections > before)
        await silent.ends(20)
        assert gateway.daemon._available_connections() >= 10
        await is_served(gateway, authority.client(), "127.0.0.2")


async def test_a_stop_ends_them(authority: Authority) -> None:
    """A drain does not wait for clients that say nothing."""
    async with silence() as silent:
        async with patient(authority) as gateway:
            await silent.come(gateway.port, 2 * MOST)
            await eventually(lambda: gateway.daemon.public_listener.request_connections == 2 * MOST)
        await silent.ends(2 * MOST)
