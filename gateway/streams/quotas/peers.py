"""What each address has just now: connections, streams, and how fast it opens them."""

from collections.abc import Callable
from typing import Protocol

from gateway.core.errors import Overload
from gateway.core.rate_limit import Rate
from gateway.streams.quotas.addresses import unit

SLACK = 64
"""Connections beyond the limit that an address may have, to be told that it has too many streams."""

IDLE = 10_000
"""Addresses without a connection that are remembered, for what they used of their rate."""

MOST = 100_000
"""Addresses without a connection that are remembered at the most, also where all used theirs just now."""

_PROXY = "; if the address is a proxy's, name it in server.trusted_proxies"


class AddressFull(Overload):
    """One address has as many streams as it may."""

    code = "address_limit"


class AddressTooFast(Overload):
    """One address opens streams too fast."""

    code = "address_rate"

    def __init__(self) -> None:
        super().__init__(f"limits.connect_rate_per_address is reached{_PROXY}")


class SharedHold(Protocol):
    """What the anonymous streams of one address occupy together: `quota.AddressHold`."""

    def release(self) -> None:
        """Count one stream out."""


class Peer:
    """One address."""

    __slots__ = ("answers", "connections", "hold", "preflights", "rate", "streams", "unit")

    def __init__(self, unit: str, rate: Rate | None) -> None:
        self.unit = unit
        self.rate = rate
        self.answers: Rate | None = None
        """How fast it answers heartbeats; None: it did not yet."""
        self.preflights: Rate | None = None
        """How fast its browsers send preflights; None: they did not yet."""
        self.connections = 0
        """Those that are no streams."""
        self.streams = 0
        self.hold: SharedHold | None = None


class Peers:
    """All of them. ``limit`` bounds the streams of one, ``rate`` how many it opens per second."""

    def __init__(self, limit: int | None, rate: float | None, is_exempt: Callable[[str], bool]) -> None:
        self._limit = limit
        self._rate = rate
        self._is_exempt = is_exempt
        self._peers: dict[str, Peer] = {}
        self._many = IDLE

    def reconfigure(self, limit: int | None, rate: float | None) -> None:
        """Take other bounds. Whoever has no peer by now, because there were none, is not counted."""
        self._limit = limit
        if rate != self._rate:
            self._rate = rate
            for peer in self._peers.values():
                peer.rate = None if rate is None else Rate(rate)
                peer.answers = peer.preflights = None

    def __len__(self) -> int:
        return len(self._peers)

    def of(self, address: str | None) -> Peer | None:
        """Return the peer of an address; None for one without limits: a trusted proxy, a Unix socket."""
        if address is None or (self._limit is None and self._rate is None) or self._is_exempt(address):
            return None
        name = unit(address)
        peer = self._peers.get(name)
        if peer is None:
            if len(self._peers) >= self._many:
                self._forget_idle()
            peer = self._peers[name] = Peer(name, None if self._rate is None else Rate(self._rate))
        return peer

    def answers(self, peer: Peer | None) -> bool:
        """Count an answer to a heartbeat, or return False where its address gives too many.

        They may be as many as streams that it opens, and count apart: neither takes the other's.
        """
        if peer is None or self._rate is None:
            return True
        if peer.answers is None:
            peer.answers = Rate(self._rate)
        return peer.answers.try_take()

    def preflight(self, peer: Peer | None) -> bool:
        """Count a preflight, or return False where its address sends too many.

        They may be as many as streams that it opens, and count apart: a page that needs one for each stream
        opens as many as another.
        """
        if peer is None or self._rate is None:
            return True
        if peer.preflights is None:
            peer.preflights = Rate(self._rate)
        return peer.preflights.try_take()

    def connects(self, peer: Peer | None) -> bool:
        """Count a connection, or return False where its address has far too many. Pair with `disconnects`."""
        if peer is None:
            return True
        if self._limit is not None and peer.connections + peer.streams >= self._limit + SLACK:
            return False
        peer.connections += 1
        return True

    def disconnects(self, peer: Peer | None) -> None:
        """Uncount a connection that is gone, or that became a stream."""
        if peer is not None:
            peer.connections -= 1

    def enter(self, peer: Peer | None, *, replaces: bool = False) -> None:
        """Count a stream; one that ``replaces`` another is let in. Raises AddressFull. Pair with `leave`."""
        if peer is None:
            return
        if self._limit is not None and peer.streams >= self._limit and not replaces:
            raise AddressFull(f"limits.connections_per_address ({self._limit}) is reached{_PROXY}")
        peer.streams += 1

    def leave(self, peer: Peer | None) -> None:
        """Uncount a stream."""
        if peer is not None:
            peer.streams -= 1

    def _forget_idle(self) -> None:
        """Let go of addresses that have nothing, and whose bucket is full again."""
        for name in [name for name, peer in self._peers.items() if _is_idle(peer)]:
            del self._peers[name]
        unconnected = [name for name, peer in self._peers.items() if not _is_connected(peer)]
        for name in unconnected[: max(0, len(unconnected) - MOST // 2)]:  # the oldest
            del self._peers[name]
        self._many = max(IDLE, min(2 * len(self._peers), len(self._peers) + MOST // 2))


def _is_connected(peer: Peer) -> bool:
    return peer.connections > 0 or peer.streams > 0


def _is_idle(peer: Peer) -> bool:
    has_all = all(rate is None or rate.is_full for rate in (peer.rate, peer.answers, peer.preflights))
    return has_all and not _is_connected(peer)
