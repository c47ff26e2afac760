"""So many per second, on average."""

import time
from collections.abc import Callable

BURST_SECONDS = 1.0
"""How much of a rate may be used at once, after it was quiet."""


class Rate:
    """A bucket that fills by ``per_second`` and holds `BURST_SECONDS` of it; who finds some may take more."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * BURST_SECONDS)
        self._clock = clock
        self._left = self._most
        self._at = clock()

    def wait(self) -> float:
        """Return the seconds until there is room again."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
        return 0.0 if self._left > 0 else (1 - self._left) / self._per_second

    def try_take(self) -> bool:
        """Use one of it, or return False where there is none just now."""
        now = self._clock()
        left = self._left + (now - self._at) * self._per_second
        if left > self._most:
            left = self._most
        self._at = now
        self._left = left - 1 if left > 0 else left
        return left > 0

    @property
    def is_full(self) -> bool:
        """Whether nothing of it is used any more."""
        return not self.wait() and self._left >= self._most

    def take(self, count: int) -> None:
        """Use so much of it, also what is not there yet."""
        self._left -= count
