"""What each address has just now: connections, streams, and how fast it opens them."""

from collections.abc import Callable
from typing import Protocol

from gateway.config.model.config import Config
from gateway.core.errors import Overloaded
from gateway.core.token_bucket import TokenBucket
from gateway.streams.quotas.client_address import address_key

EXTRA_CONNECTIONS = 64
"""Connections beyond the limit that an address may have, to be told that it has too many streams."""

CLEANUP_THRESHOLD = 10_000
"""Addresses without a connection that are remembered, for what they used of their rate."""

MAX_IDLE_ADDRESSES = 100_000
"""Addresses without a connection that are remembered at the most, also where all used theirs just now."""

_PROXY_HINT = "; if the address is a proxy's, name it in server.trusted_proxies"


class AddressLimitReached(Overloaded):
    """One address has as many streams as it may."""

    code = "address_limit"


class AddressRateExceeded(Overloaded):
    """One address opens streams too fast."""

    code = "address_rate"

    def __init__(self) -> None:
        super().__init__(f"limits.connect_rate_per_address is reached{_PROXY_HINT}")


class SharedQuota(Protocol):
    """What the anonymous streams of one address occupy together: `quota.AddressHold`."""

    def release(self) -> None:
        """Count one stream out."""


class AddressUsage:
    """One address."""

    __slots__ = (
        "ack_rate",
        "address_key",
        "connect_rate",
        "connection_count",
        "preflight_rate",
        "shared_quota",
        "stream_count",
    )

    def __init__(self, unit: str, rate: TokenBucket | None) -> None:
        self.address_key = unit
        self.connect_rate = rate
        self.ack_rate: TokenBucket | None = None
        """How fast it answers heartbeats; None: it did not yet."""
        self.preflight_rate: TokenBucket | None = None
        """How fast its browsers send preflights; None: they did not yet."""
        self.connection_count = 0
        """Those that are no streams."""
        self.stream_count = 0
        self.shared_quota: SharedQuota | None = None


class AddressQuotas:
    """All of them. ``limit`` bounds the streams of one, ``rate`` how many it opens per second."""

    def __init__(self, limit: int | None, rate: float | None, is_exempt: Callable[[str], bool]) -> None:
        self._max_streams = limit
        self._rate_per_second = rate
        self._is_exempt = is_exempt
        self._usages: dict[str, AddressUsage] = {}
        self._next_cleanup = CLEANUP_THRESHOLD

    def apply(self, config: Config) -> None:
        """Take the limits of a configuration. Connections from before there was a limit are not counted."""
        self._max_streams, rate = (
            config.limits.connections_per_address,
            config.limits.connect_rate_per_address,
        )
        if rate != self._rate_per_second:
            self._rate_per_second = rate
            for peer in self._usages.values():
                peer.connect_rate = None if rate is None else TokenBucket(rate)
                peer.ack_rate = peer.preflight_rate = None

    def __len__(self) -> int:
        return len(self._usages)

    def usage_of(self, address: str | None) -> AddressUsage | None:
        """Return the peer of an address; None for one without limits: a trusted proxy, a Unix socket."""
        if (
            address is None
            or (self._max_streams is None and self._rate_per_second is None)
            or self._is_exempt(address)
        ):
            return None
        name = address_key(address)
        peer = self._usages.get(name)
        if peer is None:
            if len(self._usages) >= self._next_cleanup:
                self._evict_idle()
            peer = self._usages[name] = AddressUsage(
                name, None if self._rate_per_second is None else TokenBucket(self._rate_per_second)
            )
        return peer

    def try_ack(self, peer: AddressUsage | None) -> bool:
        """Count an answer to a heartbeat, or return False where its address gives too many.

        They may be as many as streams that it opens, and count apart: neither takes the other's.
        """
        if peer is None or self._rate_per_second is None:
            return True
        if peer.ack_rate is None:
            peer.ack_rate = TokenBucket(self._rate_per_second)
        return peer.ack_rate.try_acquire()

    def try_preflight(self, peer: AddressUsage | None) -> bool:
        """Count a preflight, or return False where its address sends too many.

        They may be as many as streams that it opens, and count apart: a page that needs one for each stream
        opens as many as another.
        """
        if peer is None or self._rate_per_second is None:
            return True
        if peer.preflight_rate is None:
            peer.preflight_rate = TokenBucket(self._rate_per_second)
        return peer.preflight_rate.try_acquire()

    def try_add_connection(self, peer: AddressUsage | None) -> bool:
        """Count a connection, or return False where its address has far too many. Pair with `disconnects`."""
        if peer is None:
            return True
        if (
            self._max_streams is not None
            and peer.connection_count + peer.stream_count >= self._max_streams + EXTRA_CONNECTIONS
        ):
            return False
        peer.connection_count += 1
        return True

    def remove_connection(self, peer: AddressUsage | None) -> None:
        """Uncount a connection that is gone, or that became a stream."""
        if peer is not None:
            peer.connection_count -= 1

    def acquire(self, peer: AddressUsage | None, *, is_replacing: bool = False) -> None:
        """Count a stream; one that ``replaces`` another is let in. Raises AddressFull. Pair with `leave`."""
        if peer is None:
            return
        if self._max_streams is not None and peer.stream_count >= self._max_streams and not is_replacing:
            raise AddressLimitReached(
                f"limits.connections_per_address ({self._max_streams}) is reached{_PROXY_HINT}"
            )
        peer.stream_count += 1

    def release(self, peer: AddressUsage | None) -> None:
        """Uncount a stream."""
        if peer is not None:
            peer.stream_count -= 1

    def _evict_idle(self) -> None:
        """Let go of addresses that have nothing, and whose bucket is full again."""
        for name in [name for name, peer in self._usages.items() if _is_idle(peer)]:
            del self._usages[name]
        unconnected = [name for name, peer in self._usages.items() if not _is_connected(peer)]
        for name in unconnected[: max(0, len(unconnected) - MAX_IDLE_ADDRESSES // 2)]:  # the oldest
            del self._usages[name]
        self._next_cleanup = max(
            CLEANUP_THRESHOLD, min(2 * len(self._usages), len(self._usages) + MAX_IDLE_ADDRESSES // 2)
        )


def _is_connected(peer: AddressUsage) -> bool:
    return peer.connection_count > 0 or peer.stream_count > 0


def _is_idle(peer: AddressUsage) -> bool:
    has_all = all(
        rate is None or rate.is_full for rate in (peer.connect_rate, peer.ack_rate, peer.preflight_rate)
    )
    return has_all and not _is_connected(peer)
