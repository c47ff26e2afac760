"""Supervises what runs as long as the process: asyncio tasks, timers and threads.

An unexpected exception in one of them must neither pass in silence nor end the work for good. Each has a
name in `TASK_NAMES`; whatever comes out of it is logged (`background_task_failed`), counted
(``background_failures_total{task}``), and the work goes on: a task or a thread is started again after a
backoff, a timer fires again. A *vital* one that fails again and again makes the node unready
(`TaskSupervisor.failing_tasks`).

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
"""How long a task must have run for its next failure to count as the first."""

MAX_RESTART_DELAY_SECONDS = 10.0
"""The longest pause before a task is started again."""

UNREADY_AFTER_FAILURES = 3
"""Failures in a row after which a vital task makes the node unready."""

LOG_INTERVAL_SECONDS = 60.0
"""How often the same failure of one task is logged."""

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
"""Everything that can fail, and so the values of the metric's label."""

Job = Callable[[], Coroutine[Any, Any, None]]


class TaskSupervisor:
    """The supervisor of one process, or of one node in it. ``count`` is called once for each failure."""

    def __init__(self, on_failure: Callable[[TaskName], None] = lambda name: None) -> None:
        self._on_failure = on_failure
        self._last_logged: dict[TaskName, tuple[str, float]] = {}  # what was logged last, and when
        self._failures_since_logged: dict[TaskName, int] = {}  # since then
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
        """Run a job until it returns or the task is cancelled; start it again after every exception.

        Needs a running loop.
        """
        run = _TaskHealth()
        if is_vital:
            self._vital_tasks[name] = run
        return asyncio.create_task(self._run_with_restarts(name, job, run), name=name)

    async def _run_with_restarts(self, name: TaskName, job: Job, run: "_TaskHealth") -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            run.record_start()
            try:
                await job()
                return
            except asyncio.CancelledError as cancelled:
                if task.cancelling():
                    raise
                error: BaseException = cancelled  # a library's own: nobody cancelled this task
            except Exception as caught:
                if task.cancelling():  # it failed while it ended: the cancellation must not be lost by that
                    self.record_failure(name, caught)
                    raise asyncio.CancelledError from caught
                error = caught
            delay = run.record_failure(error)
            self.record_failure(name, error)
            await asyncio.sleep(delay)

    def guard_callback(self, name: TaskName, call: Callable[[], object]) -> Callable[[], None]:
        """Return a timer's callback that logs and counts an exception.

        ``call`` sets the next timer itself, before anything that may fail.
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

        run = _TaskHealth()
        if is_vital:
            self._vital_tasks[name] = run

        def keep() -> None:
            while True:
                run.record_start()
                try:
                    work()
                    return
                except Exception as error:
                    delay = run.record_failure(error)
                    self.record_failure(name, error)
                time.sleep(delay)

        return threading.Thread(target=keep, name=name, daemon=True)

    def failing_tasks(self) -> list[str]:
        """Return the vital tasks that fail again and again, with their last error."""
        return [f"{name}: {run.last_error}" for name, run in self._vital_tasks.items() if run.is_failing]


class _TaskHealth:
    """How one task has been doing."""

    def __init__(self) -> None:
        self.started_at = 0.0
        self.last_error = ""
        self._failures = 0
        self._is_pausing = False
        self._backoff = Backoff(base_seconds=0.1, cap_seconds=MAX_RESTART_DELAY_SECONDS)

    def record_start(self) -> None:
        """Note that it is started."""
        self.started_at, self._is_pausing = time.monotonic(), False

    def record_failure(self, error: BaseException) -> float:
        """Note a failure, and return after how many seconds to start again."""
        if time.monotonic() - self.started_at >= HEALTHY_AFTER_SECONDS:
            self._failures = 0
            self._backoff.reset()
        self._failures += 1
        self._is_pausing = True
        self.last_error = f"{type(error).__name__}: {error}"[:300]
        return self._backoff.next_delay()

    @property
    def is_failing(self) -> bool:
        """Whether it failed several times in a row, and has not run for long enough since."""
        is_healthy = not self._is_pausing and time.monotonic() - self.started_at >= HEALTHY_AFTER_SECONDS
        return self._failures >= UNREADY_AFTER_FAILURES and not is_healthy


UNCOUNTED_SUPERVISOR = TaskSupervisor()
"""Logs failures and counts none: for parts that are used without a node."""
