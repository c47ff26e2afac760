"""What every process of the gateway needs before its loop turns: logs, garbage collection, uvloop."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from gateway.config.model.config import LoggingConfig
from gateway.observability.logging import configure_logging
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

GC_THRESHOLD = 20_000
"""New objects until the garbage collector looks at them. Python's own 700 is a tenth of a herd's cost."""


def run_process(
    main: Callable[[], Coroutine[Any, Any, int]],
    log: LoggingConfig,
    on_dropped: Callable[[], None],
    *,
    worker: int | None = None,
    background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
) -> int:
    """Run a coroutine to its end and return what it returns. ``worker`` is told in every line of the log."""
    writer = configure_logging(
        level=log.level,
        format=log.format,
        on_line_dropped=on_dropped,
        worker=worker,
        cache_loggers=True,
        background=background,
    )
    gc.collect()
    gc.freeze()  # what was imported stays, so it need not be looked at again
    gc.set_threshold(GC_THRESHOLD)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    finally:
        writer.close()
