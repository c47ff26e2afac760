"""Limits of one address: of streams, and of how fast it opens them."""

import asyncio

import pytest

from gateway.streams.quotas import address_quotas as peers
from gateway.streams.quotas.address_quotas import AddressLimitReached, AddressQuotas
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running


def behind(address: str) -> dict[str, str]:
    """Return the header of a proxy on this machine, which is trusted by default."""
    return {"X-Forwarded-For": address}


async def reason(gateway: Gateway, address: str, path: str = "/events/orders") -> str:
    """Open a stream from an address, and return what it begins with: ``open``, or why it ended."""
    first = await (await gateway.open(path, behind(address))).next()
    return "open" if first.type == "stream.open" else str(first.json["reason"])


async def test_streams_of_one_address() -> None:
    """One office's limit is nobody else's, and what it closes it may open again."""
    async with gateway_running({"limits": {"connections_per_address": 2}}) as gateway:
        assert [await reason(gateway, "192.0.2.1") for _ in range(3)] == ["open", "open", "address_limit"]
        assert await reason(gateway, "192.0.2.2") == "open"
        gateway.streams[0].close()
        await eventually(lambda: len(gateway.daemon.streams.active) == 2)
        assert await reason(gateway, "192.0.2.1") == "open"
        assert await gateway.metric('refused_total{reason="address_limit"}') == 1


async def test_an_ipv6_network_is_one_address() -> None:
    """Otherwise the limit would be no limit."""
    async with gateway_running({"limits": {"connections_per_address": 1}}) as gateway:
        got = [await reason(gateway, f"2001:db8:0:{net}::{host}") for net, host in ((1, 1), (1, 2), (2, 1))]
        assert got == ["open", "address_limit", "open"]


async def test_how_fast_one_address_opens() -> None:
    """A refused one is told to come back, at a time of its own."""
    async with gateway_running({"limits": {"connect_rate_per_address": "3/h"}}) as gateway:
        got = [await reason(gateway, "192.0.2.1") for _ in range(4)]
        assert got == ["open", "open", "address_rate", "address_rate"]  # the second on what came meanwhile
        assert await reason(gateway, "192.0.2.2") == "open"


async def test_proxies_and_local_processes_have_no_limit_themselves() -> None:
    """All clients behind a proxy that sends no header would share one limit."""
    async with gateway_running({"limits": {"connections_per_address": 1}}) as gateway:
        for _ in range(3):
            await gateway.subscribe("/events/orders")


async def test_without_trusted_proxies_nobody_chooses_his_address() -> None:
    """A forged header changes nothing."""
    config = {"limits": {"connections_per_address": 2}, "server": {"trusted_proxies": ["192.0.2.9"]}}
    async with gateway_running(config) as gateway:
        assert [await reason(gateway, f"192.0.2.{host}") for host in (1, 2, 3)] == [
            "open",
            "open",
            "address_limit",
        ]


async def test_a_place_that_was_not_used_is_given_back() -> None:
    """Errors behind the count must not eat it up."""
    async with gateway_running({"limits": {"connections_per_address": 1, "connections": 1}}) as gateway:
        for path in ("/events/nothing", "/events/orders?last=x", "/events/orders?format=odd"):
            assert (await gateway.open(path, behind("192.0.2.1"))).status in (400, 404)
        assert await reason(gateway, "192.0.2.2") == "open"
        assert await reason(gateway, "192.0.2.1") == "overloaded"
        gateway.streams[3].close()
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await reason(gateway, "192.0.2.1") == "open"


def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of addresses may pass by."""
    monkeypatch.setattr(peers, "CLEANUP_THRESHOLD", 1000)
    known = AddressQuotas(10, 1000.0, lambda address: False)
    held = known.usage_of("192.0.2.1")
    known.acquire(held)
    for number in range(3 * peers.CLEANUP_THRESHOLD):
        known.usage_of(f"2001:db8:{number >> 8:x}:{number & 255:x}::1")
    assert len(known) <= peers.CLEANUP_THRESHOLD
    assert known.usage_of("192.0.2.1") is held


def test_addresses_that_all_used_their_rate_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has many addresses may use each of them once in the time in which a rate recovers."""
    monkeypatch.setattr(peers, "CLEANUP_THRESHOLD", 100)
    monkeypatch.setattr(peers, "MAX_IDLE_ADDRESSES", 1000)
    known = AddressQuotas(10, 1 / 3600, lambda address: False)
    held = known.usage_of("192.0.2.1")
    known.acquire(held)
    for number in range(5 * peers.MAX_IDLE_ADDRESSES):
        peer = known.usage_of(f"2001:db8:{number >> 8:x}:{number & 255:x}::1")
        assert peer is not None and peer.connect_rate is not None and peer.connect_rate.try_acquire()
    assert peers.MAX_IDLE_ADDRESSES // 2 <= len(known) <= peers.MAX_IDLE_ADDRESSES + 1
    assert known.usage_of("192.0.2.1") is held


def test_far_too_many_connections_are_not_even_taken() -> None:
    """Over the limit an address is told why; over that it is cut."""
    known = AddressQuotas(2, None, lambda address: False)
    peer = known.usage_of("192.0.2.1")
    taken = [known.try_add_connection(peer) for _ in range(2 + peers.EXTRA_CONNECTIONS + 1)]
    assert taken == [True] * (2 + peers.EXTRA_CONNECTIONS) + [False]
    known.remove_connection(peer)
    assert known.try_add_connection(peer)
    known.acquire(peer)
    known.acquire(peer)
    with pytest.raises(AddressLimitReached):
        known.acquire(peer)
    known.acquire(peer, is_replacing=True)


async def test_connections_that_ask_for_nothing_count_too() -> None:
    """One address must not hold all descriptors; a stream that it has goes on, and others are let in."""
    config = {
        "limits": {"connections_per_address": 2},
        "server": {"trusted_proxies": ["192.0.2.9"]},
        "timeouts": {"request": "30s"},
    }
    async with gateway_running(config) as gateway:
        stream = await gateway.subscribe("/events/orders")
        silent = [
            await asyncio.open_connection("127.0.0.1", gateway.port)
            for _ in range(2 + peers.EXTRA_CONNECTIONS)
        ]
        reader, _ = silent[-1]
        assert await reader.read() == b""  # cut at once
        assert await gateway.metric('refused_total{reason="address_limit"}') == 1
        other = await Stream.open(gateway.port, "/events/orders", source="127.0.0.9")
        gateway.streams.append(other)
        assert (await other.next()).type == "stream.open"
        for _, writer in silent:
            writer.transport.abort()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
        await gateway.post("orders", "1")
        assert (await stream.next()).type == "message"
        # Every way out gives the count back: idle keep-alive, a stream, a request that never came.
        await gateway.session.close()
        stream.close()
        other.close()
        known = gateway.daemon.limits.addresses._usages
        await eventually(
            lambda: all(peer.connection_count == peer.stream_count == 0 for peer in known.values())
        )
