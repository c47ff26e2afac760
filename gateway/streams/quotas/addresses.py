"""The address of a client, also behind proxies, and what counts as one address. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

REMEMBERED = 10_000
"""Addresses whose reading is remembered."""

LOCAL = "127.0.0.1"

IPV6_PREFIX = 64
"""Bits of an IPv6 address that are one subscriber (RFC 6177): who has one has 2**64."""

_Network = IPv4Network | IPv6Network


class Proxies:
    """The proxies whose ``X-Forwarded-For`` is believed."""

    def __init__(self, networks: Iterable[_Network]) -> None:
        self._networks = tuple(networks)
        self.trusts = lru_cache(REMEMBERED)(self._trusts)

    def reconfigure(self, networks: Iterable[_Network]) -> None:
        """Believe others."""
        self._networks = tuple(networks)
        self.trusts.cache_clear()

    def client(self, peer: str | None, forwarded: str | None) -> str | None:
        """Return the address of a client: the last one in the chain that no trusted proxy has.

        What stands further left was written by the client itself, or by somebody whom nobody knows.
        """
        # What connects to a Unix socket is on this machine, as what comes from 127.0.0.1 is.
        if forwarded is None or not self.trusts(LOCAL if peer is None else peer):
            return peer
        found = peer
        for hop in reversed(forwarded.split(",")):
            address = _address(hop.strip())
            if address is None:
                break
            found = address
            if not self.trusts(found):
                break
        return found

    def _trusts(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)


@lru_cache(REMEMBERED)
def unit(address: str) -> str:
    """Return what counts as one address: itself, or for IPv6 its network."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, IPV6_PREFIX), strict=False))
    return address if parsed is None else str(parsed)


def _address(hop: str) -> str | None:
    """Return the address of one entry; some proxies add a port."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    parsed = _parsed(hop)
    return None if parsed is None else str(parsed)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket that listens on [::] shows IPv4 clients so.
    return getattr(parsed, "ipv4_mapped", None) or parsed
