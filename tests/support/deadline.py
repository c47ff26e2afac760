"""The deadline of every wait in the tests: a safety net that ends a hung test, never an assertion about speed."""

import asyncio

SAFETY_SECONDS = 180.0
"""Seconds that any wait for a condition may take: far more than a machine ten times slower needs."""


def safety_net(seconds: float = SAFETY_SECONDS) -> asyncio.Timeout:
    """Bound a wait. Raises TimeoutError when it hangs; a test must never expect that."""
    return asyncio.timeout(seconds)
