"""The wall clock in milliseconds, the unit of ids and timestamps."""

import time


def unix_ms() -> int:
    """Return the current time in unix milliseconds."""
    return time.time_ns() // 1_000_000
