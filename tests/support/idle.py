"""An event loop whose clock counts only the time in which the loop is idle, and that ten times over.

In a test whose server and clients share one loop, an idle loop has nothing to do but wait for a timer. So on this
clock a timeout never fires because the machine was slow, and waiting costs a tenth of the time. What runs outside
of the loop (another process, a thread) looks ten times slower: such tests keep the real clock.
"""

import asyncio
import selectors
import time
from typing import Any

SPEED = 10.0
"""Seconds that the clock counts for one idle second."""


class _Selector(selectors.DefaultSelector):
    """Waits a tenth of what it is asked to, and counts how long it waited."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        began = time.monotonic()
        ready = super().select(None if timeout is None else timeout / SPEED)
        waited = (time.monotonic() - began) * SPEED
        if timeout is None:
            self.now += waited
        elif ready:
            self.now += min(waited, timeout)
        else:
            self.now += timeout  # no more, however late this process was woken up
        return ready


class IdleLoop(asyncio.SelectorEventLoop):
    """The loop of tests that are marked ``idle_clock``."""

    def __init__(self) -> None:
        self._idle = _Selector()
        super().__init__(self._idle)

    def time(self) -> float:
        return self._idle.now
