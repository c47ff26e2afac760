"""Determines the address of a client, also behind proxies, and the network that limits count. Pure."""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

MAX_CACHED_ADDRESSES = 10_000
"""Parsed addresses that are cached."""

LOCALHOST = "127.0.0.1"

IPV6_PREFIX_BITS = 64
"""Prefix of an IPv6 address that belongs to one subscriber (RFC 6177), who has 2**64 addresses."""

_Network = IPv4Network | IPv6Network


class TrustedProxies:
    """The proxies whose ``X-Forwarded-For`` is trusted."""

    def __init__(self, networks: Iterable[_Network]) -> None:
        self._networks = tuple(networks)
        self.is_trusted = lru_cache(MAX_CACHED_ADDRESSES)(self._is_trusted)

    def reconfigure(self, networks: Iterable[_Network]) -> None:
        """Trust other networks."""
        self._networks = tuple(networks)
        self.is_trusted.cache_clear()

    def client_address(self, peer: str | None, forwarded: str | None) -> str | None:
        """Return a client's address: the last one in the chain that is not a trusted proxy's.

        Entries further left can be forged by the client.
        """
        # The peer of a Unix socket is on this machine, like that of 127.0.0.1.
        if forwarded is None or not self.is_trusted(LOCALHOST if peer is None else peer):
            return peer
        found = peer
        for hop in reversed(forwarded.split(",")):
            address = _parse_hop(hop.strip())
            if address is None:
                break
            found = address
            if not self.is_trusted(found):
                break
        return found

    def _is_trusted(self, address: str) -> bool:
        parsed = _parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


@lru_cache(MAX_CACHED_ADDRESSES)
def address_key(address: str) -> str:
    """Return the key under which an address is counted: itself, or for IPv6 its network."""
    parsed = _parse_address(address)
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed, IPV6_PREFIX_BITS), strict=False))
    return address if parsed is None else str(parsed)


def _parse_hop(hop: str) -> str | None:
    """Return the address in an entry of ``X-Forwarded-For``; some proxies add a port."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    parsed = _parse_address(hop)
    return None if parsed is None else str(parsed)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket that listens on [::] reports IPv4 clients as mapped addresses.
    return getattr(parsed, "ipv4_mapped", None) or parsed
