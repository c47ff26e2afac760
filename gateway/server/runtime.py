"""Runs a process of the gateway: logging, garbage collection, uvloop."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from gateway.config.model.config import LoggingConfig
from gateway.observability.logging import configure_logging
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

GC_THRESHOLD = 20_000
"""New objects before a garbage collection. Python's default, 700, costs a tenth of the bench's storm row."""


def run_process(
    main: Callable[[], Coroutine[Any, Any, int]],
    log: LoggingConfig,
    on_dropped: Callable[[], None],
    *,
    worker: int | None = None,
    background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
) -> int:
    """Run a coroutine and return its result. ``worker`` is the number that every log line carries."""
    writer = configure_logging(
        level=log.level,
        format=log.format,
        on_line_dropped=on_dropped,
        worker=worker,
        cache_loggers=True,
        background=background,
    )
    gc.collect()
    gc.freeze()  # imported modules live as long as the process: no collection needs to visit them
    gc.set_threshold(GC_THRESHOLD)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    finally:
        writer.close()
