"""Throttles log lines that clients can trigger, so that clients cannot flood the log."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from gateway.core.bounded_dict import bounded_key
from gateway.core.token_bucket import TokenBucket

INTERVAL_SECONDS = 60.0
"""Shortest time between two lines with the same key."""

MAX_THROTTLED_KEYS = 1000
"""Keys that are remembered; the oldest is dropped first."""

MAX_LINES_PER_SECOND = 10.0
"""Limit for all keys together."""


class LogThrottle:
    """Decides whether to write a line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By key: when it was logged, and how often it was suppressed since.
        self._last_logged: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        self._line_budget = TokenBucket(MAX_LINES_PER_SECOND, clock)

    def should_log(self, key: Hashable) -> int | None:
        """Return None to suppress the line, else the number of occurrences since the last line, at least 1.

        ``key`` is a text, a number, or a tuple of them.
        """
        if isinstance(key, str):
            key = bounded_key(key)
        elif isinstance(key, tuple):
            key = tuple([bounded_key(each) if isinstance(each, str) else each for each in key])
        now = self._clock()
        at, count = self._last_logged.get(key, (now - INTERVAL_SECONDS, 0))
        if now - at < INTERVAL_SECONDS or not self._line_budget.try_acquire():
            self._last_logged[key] = at, count + 1
            count = -1
        else:
            self._last_logged[key] = now, 0
        if len(self._last_logged) > MAX_THROTTLED_KEYS:
            self._last_logged.popitem(last=False)
        return count + 1 or None
