"""Jittered exponential backoff."""

import random


class Backoff:
    """Yields delays that double from a base to a cap, each drawn from the upper half of its range.

    The jitter keeps many nodes that lost the same server from reconnecting at the same moment.
    """

    def __init__(self, base_seconds: float = 0.2, cap_seconds: float = 10.0) -> None:
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._attempt = 0

    def next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        # The exponent is bounded: a source may be down for weeks.
        ceiling = min(self._cap_seconds, self._base_seconds * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over at the base, after a success."""
        self._attempt = 0


def jittered(value: float, spread: float) -> float:
    """Return ``value`` changed at random by up to ``spread`` (0.2 is 20 %) in either direction."""
    return value * random.uniform(1.0 - spread, 1.0 + spread)
