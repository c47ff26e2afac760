"""Jittered exponential backoff."""

import random


class Backoff:
    """Delays in seconds that double from ``base`` to ``cap``, each drawn from its upper half.

    The jitter keeps many nodes that lost the same server from coming back in step.
    """

    def __init__(self, base_seconds: float = 0.2, cap_seconds: float = 10.0) -> None:
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._attempt = 0

    def next_delay(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        # The exponent is bounded so that a source that is down for weeks cannot overflow it.
        ceiling = min(self._cap_seconds, self._base_seconds * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        return ceiling * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin anew: the last try held."""
        self._attempt = 0


def jittered(value: float, spread: float) -> float:
    """Return ``value`` moved at random by up to ``spread`` (0.2 is 20 %) in either direction."""
    return value * random.uniform(1.0 - spread, 1.0 + spread)
