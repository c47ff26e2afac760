"""Limits per address: connections, streams, and the rates of requests."""

from collections.abc import Callable
from typing import Any

from gateway.core.errors import Overloaded
from gateway.core.token_bucket import TokenBucket
from gateway.streams.quotas.client_address import address_key

EXTRA_CONNECTIONS = 64
"""Connections beyond the limit that an address may have, so that they can be answered with an error."""

CLEANUP_THRESHOLD = 10_000
"""Addresses without a connection that are remembered, for the state of their rates."""

MAX_IDLE_ADDRESSES = 100_000
"""Most addresses without a connection that are remembered, even if all used their rates a moment ago."""

_PROXY_HINT = "; if the address is a proxy's, name it in server.trusted_proxies"


class AddressLimitReached(Overloaded):
    """An address has as many streams as it may."""

    code = "address_limit"


class AddressRateExceeded(Overloaded):
    """An address opens streams too fast."""

    code = "address_rate"

    def __init__(self) -> None:
        super().__init__(f"limits.connect_rate_per_address is reached{_PROXY_HINT}")


class AddressUsage:
    """What one address uses of its limits."""

    __slots__ = (
        "ack_rate",
        "address_key",
        "connect_rate",
        "connection_count",
        "preflight_rate",
        "shared_quota",
        "stream_count",
    )

    def __init__(self, address_key: str, rate: TokenBucket | None) -> None:
        self.address_key = address_key
        self.connect_rate = rate
        self.ack_rate: TokenBucket | None = None
        """For acknowledgements of heartbeats; None: there were none yet."""
        self.preflight_rate: TokenBucket | None = None
        """For preflights; None: there were none yet."""
        self.connection_count = 0
        """Connections that are not streams."""
        self.stream_count = 0
        self.shared_quota: Any = None
        """The `SharedAddressQuota` of its anonymous streams, once there is one."""


class AddressQuotas:
    """Counts by address. ``limit`` bounds the streams of one, ``rate`` how many it opens per second."""

    def __init__(self, limit: int | None, rate: float | None, is_exempt: Callable[[str], bool]) -> None:
        self._max_streams = limit
        self._rate_per_second = rate
        self._is_exempt = is_exempt
        self._usages: dict[str, AddressUsage] = {}
        self._next_cleanup = CLEANUP_THRESHOLD

    def reconfigure(self, limit: int | None, rate: float | None) -> None:
        """Apply other limits. Connections from before there were any stay uncounted."""
        self._max_streams = limit
        if rate != self._rate_per_second:
            self._rate_per_second = rate
            for usage in self._usages.values():
                usage.connect_rate = None if rate is None else TokenBucket(rate)
                usage.ack_rate = usage.preflight_rate = None

    def __len__(self) -> int:
        return len(self._usages)

    def usage_of(self, address: str | None) -> AddressUsage | None:
        """Return the usage of an address; None for one without limits: a trusted proxy, a Unix socket."""
        if (
            address is None
            or (self._max_streams is None and self._rate_per_second is None)
            or self._is_exempt(address)
        ):
            return None
        key = address_key(address)
        usage = self._usages.get(key)
        if usage is None:
            if len(self._usages) >= self._next_cleanup:
                self._evict_idle()
            rate = self._rate_per_second
            usage = self._usages[key] = AddressUsage(key, None if rate is None else TokenBucket(rate))
        return usage

    def try_ack(self, usage: AddressUsage | None) -> bool:
        """Count an acknowledgement; return False if its address sends more than it may open streams."""
        if usage is None or self._rate_per_second is None:
            return True
        if usage.ack_rate is None:
            usage.ack_rate = TokenBucket(self._rate_per_second)
        return usage.ack_rate.try_acquire()

    def try_preflight(self, usage: AddressUsage | None) -> bool:
        """Count a preflight; return False if its address sends more than it may open streams."""
        if usage is None or self._rate_per_second is None:
            return True
        if usage.preflight_rate is None:
            usage.preflight_rate = TokenBucket(self._rate_per_second)
        return usage.preflight_rate.try_acquire()

    def try_add_connection(self, usage: AddressUsage | None) -> bool:
        """Count a connection; return False if its address has far too many. Pair with `remove_connection`."""
        if usage is None:
            return True
        if (
            self._max_streams is not None
            and usage.connection_count + usage.stream_count >= self._max_streams + EXTRA_CONNECTIONS
        ):
            return False
        usage.connection_count += 1
        return True

    def remove_connection(self, usage: AddressUsage | None) -> None:
        """Uncount a connection that was closed, or that became a stream."""
        if usage is not None:
            usage.connection_count -= 1

    def acquire(self, usage: AddressUsage | None, *, is_replacing: bool = False) -> None:
        """Count a stream, always if ``is_replacing`` another. Pair with `release`.

        Raises AddressLimitReached.
        """
        if usage is None:
            return
        if self._max_streams is not None and usage.stream_count >= self._max_streams and not is_replacing:
            raise AddressLimitReached(
                f"limits.connections_per_address ({self._max_streams}) is reached{_PROXY_HINT}"
            )
        usage.stream_count += 1

    def release(self, usage: AddressUsage | None) -> None:
        """Uncount a stream."""
        if usage is not None:
            usage.stream_count -= 1

    def _evict_idle(self) -> None:
        """Forget addresses that use nothing."""
        for key in [key for key, usage in self._usages.items() if _is_idle(usage)]:
            del self._usages[key]
        unconnected = [key for key, usage in self._usages.items() if not _is_connected(usage)]
        for key in unconnected[: max(0, len(unconnected) - MAX_IDLE_ADDRESSES // 2)]:  # the oldest
            del self._usages[key]
        self._next_cleanup = max(
            CLEANUP_THRESHOLD, min(2 * len(self._usages), len(self._usages) + MAX_IDLE_ADDRESSES // 2)
        )


def _is_connected(usage: AddressUsage) -> bool:
    return usage.connection_count > 0 or usage.stream_count > 0


def _is_idle(usage: AddressUsage) -> bool:
    rates = (usage.connect_rate, usage.ack_rate, usage.preflight_rate)
    return all(rate is None or rate.is_full for rate in rates) and not _is_connected(usage)
