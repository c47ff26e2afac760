"""Supervises what runs as long as the process: asyncio tasks, timers and threads.

An unexpected exception in one of them must neither pass in silence nor end the work for good. Each has a
name in `TASKS`; whatever comes out of it is logged (`background_task_failed`), counted
(``background_failures_total{task}``), and the work goes on: a task or a thread is started again after a
backoff, a timer fires again. A *vital* one that fails again and again makes the node unready
(`Background.faults`).

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

HEALTHY_SECONDS = 10.0
"""How long a task must have run for its next failure to count as the first."""

PAUSE_SECONDS = 10.0
"""The longest pause before a task is started again."""

REPEATED = 3
"""Failures in a row after which a vital task makes the node unready."""

LOG_SECONDS = 60.0
"""How often the same failure of one task is logged."""

TaskName = Literal[
    "ack_key",
    "ack_relay",
    "ack_sweep",
    "canary",
    "certificates",
    "client_announcements",
    "config_watch",
    "connection_sweep",
    "console",
    "delivery",
    "election",
    "freshness",
    "heartbeats",
    "hub",
    "key_refresh",
    "log_writer",
    "loop_lag",
    "missed_notices",
    "parent_orders",
    "pump",
    "redis_follower",
    "redis_writer",
    "seats",
    "short_heartbeats",
    "source",
    "sqlite_follower",
    "sqlite_sweep",
    "sqlite_writer",
    "watchdog",
    "worker_keeper",
    "worker_look",
    "worker_probes",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""Everything that can fail, and so the values of the metric's label."""

Job = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """The supervisor of one process, or of one node in it. ``count`` is called once for each failure."""

    def __init__(self, count: Callable[[TaskName], None] = lambda name: None) -> None:
        self._count = count
        self._logged: dict[TaskName, tuple[str, float]] = {}  # what was logged last, and when
        self._times: dict[TaskName, int] = {}  # since then
        self._vital: dict[TaskName, _Run] = {}

    def failed(self, name: TaskName, error: BaseException) -> None:
        """Log and count a failure. Safe to call from any thread."""
        self._count(name)
        text, now = f"{type(error).__name__}: {error}"[:300], time.monotonic()
        self._times[name] = times = self._times.get(name, 0) + 1
        before, at = self._logged.get(name, ("", 0.0))
        if text == before and now - at < LOG_SECONDS:
            return
        self._logged[name], self._times[name] = (text, now), 0
        log.error("background_task_failed", task=name, error=text, times=times, exc_info=error)

    def start(self, name: TaskName, job: Job, *, is_vital: bool = False) -> "asyncio.Task[None]":
        """Run a job until it returns or the task is cancelled; start it again after every exception.

        Needs a running loop.
        """
        run = _Run()
        if is_vital:
            self._vital[name] = run
        return asyncio.create_task(self._keep(name, job, run), name=name)

    async def _keep(self, name: TaskName, job: Job, run: "_Run") -> None:
        task = asyncio.current_task()
        assert task is not None
        while True:
            run.begin()
            try:
                await job()
                return
            except asyncio.CancelledError as cancelled:
                if task.cancelling():
                    raise
                error: BaseException = cancelled  # a library's own: nobody cancelled this task
            except Exception as caught:
                if task.cancelling():  # it failed while it ended: the cancellation must not be lost by that
                    self.failed(name, caught)
                    raise asyncio.CancelledError from caught
                error = caught
            delay = run.fails(error)
            self.failed(name, error)
            await asyncio.sleep(delay)

    def guarded(self, name: TaskName, call: Callable[[], object]) -> Callable[[], None]:
        """Return a timer's callback that logs and counts an exception.

        ``call`` sets the next timer itself, before anything that may fail.
        """

        def guarded() -> None:
            try:
                call()
            except Exception as error:
                self.failed(name, error)

        return guarded

    def thread(self, name: TaskName, work: Callable[[], None], *, is_vital: bool = False) -> threading.Thread:
        """Return a daemon thread that runs ``work`` until it returns, and again after every exception."""

        run = _Run()
        if is_vital:
            self._vital[name] = run

        def keep() -> None:
            while True:
                run.begin()
                try:
                    work()
                    return
                except Exception as error:
                    delay = run.fails(error)
                    self.failed(name, error)
                time.sleep(delay)

        return threading.Thread(target=keep, name=name, daemon=True)

    def faults(self) -> list[str]:
        """Return the vital tasks that fail again and again, with their last error."""
        return [f"{name}: {run.error}" for name, run in self._vital.items() if run.is_failing]


class _Run:
    """How one task has been doing."""

    def __init__(self) -> None:
        self.began = 0.0
        self.error = ""
        self._failures = 0
        self._is_pausing = False
        self._backoff = Backoff(base=0.1, cap=PAUSE_SECONDS)

    def begin(self) -> None:
        """Note that it is started."""
        self.began, self._is_pausing = time.monotonic(), False

    def fails(self, error: BaseException) -> float:
        """Note a failure, and return after how many seconds to start again."""
        if time.monotonic() - self.began >= HEALTHY_SECONDS:
            self._failures = 0
            self._backoff.reset()
        self._failures += 1
        self._is_pausing = True
        self.error = f"{type(error).__name__}: {error}"[:300]
        return self._backoff.next()

    @property
    def is_failing(self) -> bool:
        """Whether it failed several times in a row, and has not run for long enough since."""
        is_healthy = not self._is_pausing and time.monotonic() - self.began >= HEALTHY_SECONDS
        return self._failures >= REPEATED and not is_healthy


UNCOUNTED = Background()
"""Logs failures and counts none: for parts that are used without a node."""
