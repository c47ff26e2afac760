"""How late the event loop is, and whether that, or a pump that stands still, has gone on for too long.

A loop that is stuck runs no handler: then a probe gets no answer, and that is the answer. What is
measured here is for the rest: a loop that turns, but so slowly that nothing gets done, or whose pump
does not.
"""

import asyncio
from collections.abc import Callable

from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

TICK_SECONDS = 0.1
"""Seconds between two looks; a stall that is longer is always seen."""

LATE_THRESHOLD_SECONDS = 2.0
"""What counts as late. A herd of 15,000 on one core does not come near it."""

STUCK_AFTER_SECONDS = 30.0
"""How long all must be late, without a look that was not, until a restart is the lesser evil."""

WINDOW_SECONDS = 15.0
"""How long the worst lag is told, at least: no shorter than the usual interval of scrapes."""


class LoopLagMonitor:
    """`start` and `stop` it with the loop. ``pump`` calls what it is given behind all writes that wait."""

    def __init__(
        self,
        run_after_writes: Callable[[Callable[[], None]], None],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._run_after_writes = run_after_writes
        self._guarded_tick = background.guard_callback("loop_lag", self._tick)
        self._timer: asyncio.TimerHandle | None = None
        self._tick_due_at = 0.0
        self._pump_requested_at: float | None = None  # since when the pump has been asked
        self._late_since: float | None = None
        self._window_worst = self._previous_window_worst = 0.0
        self._window_started_at = 0.0

    def start(self) -> None:
        """Begin to measure. Needs a running loop."""
        loop = asyncio.get_running_loop()
        self._tick_due_at = loop.time() + TICK_SECONDS
        self._timer = loop.call_later(TICK_SECONDS, self._guarded_tick)

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst_lag_seconds(self) -> float:
        """The longest lag of the last seconds, in seconds: of `WINDOW_SECONDS`, or up to twice as many."""
        return max(self._window_worst, self._previous_window_worst)

    @property
    def is_stuck(self) -> bool:
        """Whether the loop, or the pump, was late at every look for so long that it will not recover."""
        return self.late_seconds > STUCK_AFTER_SECONDS

    @property
    def late_seconds(self) -> float:
        """For how many seconds all looks have been late; 0 after one that was not.

        One stall counts from its end: a process that was frozen, and goes on, is well.
        """
        return 0.0 if self._late_since is None else asyncio.get_running_loop().time() - self._late_since

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        lag = max(0.0, now - self._tick_due_at)
        self.start()  # first: nothing below may end the measuring
        if now - self._window_started_at >= WINDOW_SECONDS:
            self._window_started_at, self._previous_window_worst, self._window_worst = (
                now,
                self._window_worst,
                0.0,
            )
        self._window_worst = max(self._window_worst, lag)
        waits = 0.0 if self._pump_requested_at is None else now - self._pump_requested_at
        if max(lag, waits) < LATE_THRESHOLD_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        if self._pump_requested_at is None:
            self._pump_requested_at = now
            try:
                self._run_after_writes(self._on_pump_ran)
            except BaseException:
                self._pump_requested_at = None  # nobody was asked, so nobody is late
                raise

    def _on_pump_ran(self) -> None:
        self._pump_requested_at = None
