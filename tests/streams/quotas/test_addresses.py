"""Whose request it is: nobody may choose his own address, and nobody has 2**64 of them."""

from ipaddress import ip_network

import pytest

from gateway.streams.quotas.client_address import TrustedProxies, address_key

TRUSTED = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"), ip_network("127.0.0.0/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.1", "1.1.1.1, 192.0.2.7, 10.0.0.2", "192.0.2.7"),  # the client wrote the first one itself
        ("10.0.0.1", "10.9.9.9, 10.0.0.2", "10.9.9.9"),  # all of them trusted: the first is the client
        ("192.0.2.1", "192.0.2.7", "192.0.2.1"),  # not a proxy of ours
        ("10.0.0.1", "garbage", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, garbage", "10.0.0.1"),
        ("10.0.0.1", "garbage, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7:4711", "192.0.2.7"),
        ("10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("10.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("10.0.0.1", "192.0.2.7\r\nx, ", "10.0.0.1"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("2001:db8:1::1", "2001:db8:2::1", "2001:db8:2::1"),
        ("fe80::1%eth0", "192.0.2.7", "fe80::1%eth0"),
        (None, "192.0.2.7", "192.0.2.7"),
    ],
)
def test_the_client_behind_proxies(peer: str | None, forwarded: str | None, client: str | None) -> None:
    """The last address that no trusted proxy has; what stands before it is anybody's word."""
    assert TRUSTED.client_address(peer, forwarded) == client


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:0:1:2:3:4:5", "2001:db8:0:1::/64"),
        ("2001:db8:0:1::9", "2001:db8:0:1::/64"),
        ("2001:db8:0:2::9", "2001:db8:0:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("odd", "odd"),
    ],
)
def test_what_counts_as_one(address: str, expected: str) -> None:
    """A subscriber's IPv6 network, not each of its addresses."""
    assert address_key(address) == expected
