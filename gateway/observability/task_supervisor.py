"""Supervises long-lived work: asyncio tasks, timers and threads.

An unexpected exception in one of them is logged (`background_task_failed`), counted
(``background_failures_total{task}``), and the work goes on: a task or thread is restarted after a backoff, a
timer fires again. A *vital* task that fails repeatedly makes the node unready (`failing_tasks`).

``tests/observability/test_background.py`` lists every place that starts a task, a timer or a thread, and
injects an exception into each of those that live long.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, get_args

import structlog

from gateway.core.backoff import Backoff

log = structlog.get_logger("gateway")

HEALTHY_AFTER_SECONDS = 10.0
"""How long a task must run for its next failure to count as the first in a row."""

MAX_RESTART_DELAY_SECONDS = 10.0
"""Longest delay before a task is restarted."""

UNREADY_AFTER_FAILURES = 3
"""Failures in a row after which a vital task makes the node unready."""

LOG_INTERVAL_SECONDS = 60.0
"""Shortest time between two log lines for the same failure of a task."""

TaskName = Literal[
    "ack_key",
    "ack_forwarder",
    "ack_sweep",
    "canary",
    "certificate_watcher",
    "client_announcements",
    "config_watch",
    "connection_sweep",
    "status_stream",
    "event_delivery",
    "election",
    "staleness",
    "heartbeats",
    "hub",
    "key_refresh",
    "log_writer",
    "loop_lag",
    "control_channel",
    "worker_control_loop",
    "pump",
    "redis_follower",
    "redis_writer",
    "user_quotas",
    "short_heartbeats",
    "source",
    "sqlite_follower",
    "sqlite_sweep",
    "sqlite_writer",
    "watchdog",
    "worker_supervisor",
    "worker_liveness",
    "worker_probes",
]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
"""The values of the metric's label ``task``."""

Job = Callable[[], Coroutine[Any, Any, None]]


class TaskSupervisor:
    """Supervises a process or node. ``on_failure`` is called for each failure, from any thread."""

    def __init__(self, on_failure: Callable[[TaskName], None] = lambda name: None) -> None:
        self._on_failure = on_failure
        self._last_logged: dict[TaskName, tuple[str, float]] = {}  # error and time of the last log line
        self._failures_since_logged: dict[TaskName, int] = {}
        self._vital_tasks: dict[TaskName, _TaskHealth] = {}

    def record_failure(self, name: TaskName, error: BaseException) -> None:
        """Log and count a failure. Safe to call from any thread."""
        self._on_failure(name)
        text, now = f"{type(error).__name__}: {error}"[:300], time.monotonic()
        self._failures_since_logged[name] = times = self._failures_since_logged.get(name, 0) + 1
        before, at = self._last_logged.get(name, ("", 0.0))
        if text == before and now - at < LOG_INTERVAL_SECONDS:
            return
        self._last_logged[name], self._failures_since_logged[name] = (text, now), 0
        log.error("background_task_failed", task=name, error=text, times=times, exc_info=error)

    def start_task(self, name: TaskName, job: Job, *, is_vital: bool = False) -> "asyncio.Task[None]":
        """Run a job until it returns or the task is cancelled, and restart it after every exception.

        Needs a running loop.
        """
        health = self._track(name, is_vital=is_vital)
        return asyncio.create_task(self._run_with_restarts(name, job, health), name=name)

    async def _run_with_restarts(self, name: TaskName, job: Job, health: "_TaskHealth") -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            health.record_start()
            try:
                await job()
                return
            except asyncio.CancelledError as cancelled:
                if task.cancelling():
                    raise
                error: BaseException = cancelled  # raised by a library: this task was not cancelled
            except Exception as caught:
                if task.cancelling():  # it failed while being cancelled: the cancellation must not be lost
                    self.record_failure(name, caught)
                    raise asyncio.CancelledError from caught
                error = caught
            delay = health.record_failure(error)
            self.record_failure(name, error)
            await asyncio.sleep(delay)

    def guard_callback(self, name: TaskName, call: Callable[[], object]) -> Callable[[], None]:
        """Return a timer's callback that logs and counts exceptions.

        ``call`` must set the next timer itself, before anything that may fail.
        """

        def guarded() -> None:
            try:
                call()
            except Exception as error:
                self.record_failure(name, error)

        return guarded

    def create_thread(
        self, name: TaskName, work: Callable[[], None], *, is_vital: bool = False
    ) -> threading.Thread:
        """Return a daemon thread that runs ``work`` until it returns, and again after every exception."""
        health = self._track(name, is_vital=is_vital)

        def run_with_restarts() -> None:
            while True:
                health.record_start()
                try:
                    work()
                    return
                except Exception as error:
                    delay = health.record_failure(error)
                    self.record_failure(name, error)
                time.sleep(delay)

        return threading.Thread(target=run_with_restarts, name=name, daemon=True)

    def _track(self, name: TaskName, *, is_vital: bool) -> "_TaskHealth":
        health = _TaskHealth()
        if is_vital:
            self._vital_tasks[name] = health
        return health

    def failing_tasks(self) -> list[str]:
        """Return the vital tasks that fail repeatedly, each with its last error."""
        return [
            f"{name}: {health.last_error}" for name, health in self._vital_tasks.items() if health.is_failing
        ]


class _TaskHealth:
    """Failures and restarts of one task."""

    def __init__(self) -> None:
        self.started_at = 0.0
        self.last_error = ""
        self._failures = 0
        self._is_pausing = False
        self._backoff = Backoff(base_seconds=0.1, cap_seconds=MAX_RESTART_DELAY_SECONDS)

    def record_start(self) -> None:
        """Record a start."""
        self.started_at, self._is_pausing = time.monotonic(), False

    def record_failure(self, error: BaseException) -> float:
        """Record a failure, and return the seconds until the restart."""
        if time.monotonic() - self.started_at >= HEALTHY_AFTER_SECONDS:
            self._failures = 0
            self._backoff.reset()
        self._failures += 1
        self._is_pausing = True
        self.last_error = f"{type(error).__name__}: {error}"[:300]
        return self._backoff.next_delay()

    @property
    def is_failing(self) -> bool:
        """Whether it failed several times in a row and has not run for `HEALTHY_AFTER_SECONDS` since."""
        is_healthy = not self._is_pausing and time.monotonic() - self.started_at >= HEALTHY_AFTER_SECONDS
        return self._failures >= UNREADY_AFTER_FAILURES and not is_healthy


UNCOUNTED_SUPERVISOR = TaskSupervisor()
"""Logs failures without counting them, for components that are used without a node."""
