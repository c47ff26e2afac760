"""A rate limit: a token bucket."""

import time
from collections.abc import Callable

BURST_SECONDS = 1.0
"""Capacity of a bucket, in seconds of its rate."""


class TokenBucket:
    """Fills by ``per_second`` up to `BURST_SECONDS` of it. `consume` may take more than is there."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._tokens = self._capacity
        self._refilled_at = clock()

    def seconds_until_available(self) -> float:
        """Return the seconds until a token is available; 0 if there is one."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        return 0.0 if self._tokens > 0 else (1 - self._tokens) / self._per_second

    def try_acquire(self) -> bool:
        """Take one token, or return False if there is none."""
        now = self._clock()
        left = self._tokens + (now - self._refilled_at) * self._per_second
        if left > self._capacity:
            left = self._capacity
        self._refilled_at = now
        self._tokens = left - 1 if left > 0 else left
        return left > 0

    @property
    def is_full(self) -> bool:
        """Whether the bucket is at its capacity."""
        return not self.seconds_until_available() and self._tokens >= self._capacity

    def consume(self, count: int) -> None:
        """Take ``count`` tokens, even if fewer are there: the balance may become negative."""
        self._tokens -= count
