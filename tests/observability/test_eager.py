"""A coroutine without anything to wait for costs no task; one that waits behaves like any task."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from gateway.observability.eager import enter_task, run_eagerly

_variable: ContextVar[str] = ContextVar("_variable", default="outside")


async def from_callback(call: Callable[[], Any]) -> Any:
    """Call something as the event loop calls a protocol: outside of any task."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)

    asyncio.get_running_loop().call_soon(run)
    return await done


async def finish(outcome: Any) -> Any:
    """Return the result, whether it is there or a task's."""
    return await outcome if isinstance(outcome, asyncio.Task) else outcome


async def test_a_result_that_is_there_costs_no_task() -> None:
    """Each stream of a herd would cost a task."""

    async def work() -> int:
        return 1

    assert await from_callback(lambda: run_eagerly(work(), name="x")) == 1


async def test_an_error_before_the_first_wait_is_raised() -> None:
    """A refused request would be answered by nobody."""

    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await from_callback(lambda: run_eagerly(work(), name="x"))


async def test_timeouts_work_after_the_first_wait() -> None:
    """A broker's deadline needs a task; without one every stream that resumes would fail."""

    async def work() -> str:
        await enter_task()
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            return "late"
        return "never"

    task = await from_callback(lambda: run_eagerly(work(), name="x"))
    assert isinstance(task, asyncio.Task)
    assert task.get_name() == "x"
    assert await task == "late"


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_client_that_leaves_cancels_it_wherever_it_is(turns: int) -> None:
    """A slot that is not released counts against its client for ever."""
    events: list[str] = []

    async def work() -> None:
        events.append("acquired")
        try:
            await enter_task()
            await asyncio.Event().wait()
        finally:
            events.append("released")

    task = await from_callback(lambda: run_eagerly(work(), name="x"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["acquired", "released"]


async def test_context_variables_last_over_the_change_into_a_task() -> None:
    """A variable that is set before the wait must be there after it, be resettable, and not leak."""

    async def work() -> str:
        token = _variable.set("inside")
        await enter_task()
        await asyncio.sleep(0)
        seen = _variable.get()
        _variable.reset(token)
        return seen

    async def call() -> Awaitable[str]:
        outcome = await from_callback(lambda: (run_eagerly(work(), name="x"), _variable.get()))
        assert outcome[1] == "outside"
        return outcome[0]  # type: ignore[no-any-return]

    assert await finish(await call()) == "inside"


async def test_within_a_task_nothing_moves() -> None:
    """A coroutine that has a task already would lose a turn of the loop at each layer."""
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    asyncio.get_running_loop().call_soon(count)
    await enter_task()
    assert turns == 0


async def test_a_wait_without_a_task_is_an_error() -> None:
    """It would never be resumed: its client would wait for ever."""

    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="enter_task"):
        await from_callback(lambda: run_eagerly(work(), name="x"))
