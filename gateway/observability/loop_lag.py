"""Measures the lag of the event loop and of the hub's pump, for the liveness probe.

A blocked loop answers no probe, so the probe fails by itself. This detects the other cases: a loop that runs
too slowly to get anything done, and a pump that has stopped.
"""

import asyncio
from collections.abc import Callable

from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

TICK_SECONDS = 0.1
"""Interval of the measurement; longer stalls are always noticed."""

LATE_THRESHOLD_SECONDS = 2.0
"""Lag that counts as late. A herd of 15,000 on one core stays far below."""

STUCK_AFTER_SECONDS = 30.0
"""How long every measurement must be late before a restart is the lesser evil."""

WINDOW_SECONDS = 15.0
"""How long the worst lag is reported, at least: no shorter than the usual scrape interval."""


class LoopLagMonitor:
    """Measures from `start` to `stop`. ``run_after_writes`` calls a function after all pending writes."""

    def __init__(
        self,
        run_after_writes: Callable[[Callable[[], None]], None],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._run_after_writes = run_after_writes
        self._guarded_tick = background.guard_callback("loop_lag", self._tick)
        self._timer: asyncio.TimerHandle | None = None
        self._tick_due_at = 0.0
        self._pump_requested_at: float | None = None  # since when the pump's callback is due
        self._late_since: float | None = None
        self._window_worst = self._previous_window_worst = 0.0
        self._window_started_at = 0.0

    def start(self) -> None:
        """Start measuring. Needs a running loop."""
        loop = asyncio.get_running_loop()
        self._tick_due_at = loop.time() + TICK_SECONDS
        self._timer = loop.call_later(TICK_SECONDS, self._guarded_tick)

    def stop(self) -> None:
        """Stop measuring; may be repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def worst_lag_seconds(self) -> float:
        """The longest lag of the last `WINDOW_SECONDS`, or up to twice as long, in seconds."""
        return max(self._window_worst, self._previous_window_worst)

    @property
    def is_stuck(self) -> bool:
        """Whether every measurement was late for `STUCK_AFTER_SECONDS`, so that recovery is not expected."""
        return self.late_seconds > STUCK_AFTER_SECONDS

    @property
    def late_seconds(self) -> float:
        """For how many seconds every measurement has been late; 0 after one that was not.

        A single stall counts from its end: a process that was frozen and continues is healthy.
        """
        return 0.0 if self._late_since is None else asyncio.get_running_loop().time() - self._late_since

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        lag = max(0.0, now - self._tick_due_at)
        self.start()  # first: an error below must not stop the measurement
        if now - self._window_started_at >= WINDOW_SECONDS:
            self._window_started_at = now
            self._previous_window_worst, self._window_worst = self._window_worst, 0.0
        self._window_worst = max(self._window_worst, lag)
        pump_lag = 0.0 if self._pump_requested_at is None else now - self._pump_requested_at
        if max(lag, pump_lag) < LATE_THRESHOLD_SECONDS:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        if self._pump_requested_at is None:
            self._pump_requested_at = now
            try:
                self._run_after_writes(self._on_pump_ran)
            except BaseException:
                self._pump_requested_at = None  # nothing is due, so nothing is late
                raise

    def _on_pump_ran(self) -> None:
        self._pump_requested_at = None
