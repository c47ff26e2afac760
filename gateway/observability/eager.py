"""Running a coroutine without a task for as long as it has nothing to wait for.

`run_eagerly` runs a coroutine in the caller's stack. A coroutine that has its answer at once costs no task
and no turn of the event loop (rows storm and herd of the benchmark: every stream opens by this path).
Before its first real wait the coroutine awaits `enter_task`, which moves the rest of it into a task:
timeouts, cancellation and context variables work there as in any other task.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_eagerly(work: Coroutine[Any, Any, T], *, name: str) -> "T | asyncio.Task[T]":
    """Return the result of a coroutine that does not wait, else the task that finishes it.

    For callbacks of the event loop, which no task runs. Raises what the coroutine raises before its first
    wait, and RuntimeError if that wait has no task.
    """
    context = copy_context()
    try:
        awaited = context.run(work.send, None)
    except StopIteration as done:
        result: T = done.value
        return result
    if awaited is not None:
        work.close()
        raise RuntimeError("a coroutine that is run eagerly must await enter_task() before it waits")
    # It stopped at a bare yield, where a task's first step resumes it, with a result or a cancellation.
    return asyncio.create_task(work, name=name, context=context)


@coroutine
def enter_task() -> Generator[None, None, None]:
    """Continue in a task: await this before the first wait of a coroutine that may be run eagerly.

    Returns at once in a coroutine that has a task. Cancelling is safe.
    """
    if asyncio.current_task() is None:
        yield
