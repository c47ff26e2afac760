"""Events that know when they were published."""

import time

SIZE = 100
"""Bytes of a payload, unless a scenario says otherwise."""


def payload(size: int = SIZE) -> bytes:
    """Return a JSON object of ``size`` bytes with the time of now, on the monotonic clock, in it."""
    stamp = b'{"t":%d,"x":"' % time.monotonic_ns()
    return stamp + b"y" * (size - len(stamp) - 2) + b'"}'
