"""How late the event loop is, and whether that, or a pump that stands still, has gone on for too long.

A loop that is stuck runs no handler: then a probe gets no answer, and that is the answer. What is
measured here is for the rest: a loop that turns, but so slowly that nothing gets done, or whose pump
does not.
"""

import asyncio
from collections.abc import Callable

from gateway.observability.background import UNCOUNTED, Background

TICK = 0.1
"""Seconds between two looks; a stall that is longer is always seen."""

LATE_SECONDS = 2.0
"""What counts as late. A herd of 15,000 on one core does not come near it."""

STUCK_SECONDS = 30.0
"""How long all must be late, without a look that was not, until a restart is the lesser evil."""

WINDOW_SECONDS = 15.0
"""How long the worst lag is told, at least: no shorter than the usual interval of scrapes."""


class LoopLag:
    """`start` and `stop` it with the loop. ``pump`` calls what it is given behind all writes that wait."""

    def __init__(
        self, pump: Callable[[Callable[[], None]], None], background: Background = UNCOUNTED
    ) -> None:
        self._pump = pump
        self._guarded = background.guarded("loop_lag", self._tick)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._pumped: float | None = None  # since when the pump has been asked
        self._late_since: float | None = None
        self._worst = self._before = 0.0
        self._window = 0.0

    def start(self) -> None:
        """Begin to measure. Needs a running loop."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + TICK
        self._timer = loop.call_later(TICK, self._guarded)

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst(self) -> float:
        """The longest lag of the last seconds, in seconds: of `WINDOW_SECONDS`, or up to twice as many."""
        return max(self._worst, self._before)

    @property
    def is_stuck(self) -> bool:
        """Whether the loop, or the pump, was late at every look for so long that it will not recover."""
        return self.late_for > STUCK_SECONDS

    @property
    def late_for(self) -> float:
        """For how many seconds all looks have been late; 0 after one that was not.

        One stall counts from its end: a process that was frozen, and goes on, is well.
        """
        return 0.0 if self._late_since is None else asyncio.get_running_loop().time() - self._late_since

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        lag = max(0.0, now - self._due)
        self.start()  # first: nothing below may end the measuring
        if now - self._window >= WINDOW_SECONDS:
            self._window, self._before, self._worst = now, self._worst, 0.0
        self._worst = max(self._worst, lag)
        waits = 0.0 if self._pumped is None else now - self._pumped
        if max(lag, waits) < LATE_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        if self._pumped is None:
            self._pumped = now
            try:
                self._pump(self._was_pumped)
            except BaseException:
                self._pumped = None  # nobody was asked, so nobody is late
                raise

    def _was_pumped(self) -> None:
        self._pumped = None
