"""So many per second, on average."""

import time
from collections.abc import Callable

BURST_SECONDS = 1.0
"""How much of a rate may be used at once, after it was quiet."""


class TokenBucket:
    """A bucket that fills by ``per_second`` and holds `BURST_SECONDS` of it; who finds some may take more."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._tokens = self._capacity
        self._refilled_at = clock()

    def seconds_until_available(self) -> float:
        """Return the seconds until there is room again."""
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        return 0.0 if self._tokens > 0 else (1 - self._tokens) / self._per_second

    def try_acquire(self) -> bool:
        """Use one of it, or return False where there is none just now."""
        now = self._clock()
        left = self._tokens + (now - self._refilled_at) * self._per_second
        if left > self._capacity:
            left = self._capacity
        self._refilled_at = now
        self._tokens = left - 1 if left > 0 else left
        return left > 0

    @property
    def is_full(self) -> bool:
        """Whether nothing of it is used any more."""
        return not self.seconds_until_available() and self._tokens >= self._capacity

    def consume(self, count: int) -> None:
        """Use so much of it, also what is not there yet."""
        self._tokens -= count
