"""The wall clock, in the unit of ids and timestamps."""

import time


def unix_ms() -> int:
    """Return the wall clock in unix milliseconds."""
    return time.time_ns() // 1_000_000
