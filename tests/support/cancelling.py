"""Cancels a coroutine at each of its awaits, one after the other: what it leaves behind must be nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from tests.support.deadline import safety_net


class _Counted:
    """Runs a coroutine inside a task, and cancels the task as soon as the coroutine waits for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], number: int) -> None:
        self._coroutine = coroutine
        self._number = number
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        error: BaseException | None = None
        waits = 0
        while True:
            try:
                awaited = self._coroutine.throw(error) if error is not None else self._coroutine.send(None)
            except StopIteration as end:
                return end.value
            error = None
            if waits == self._number:
                self.is_cancelled = True
                loop.call_soon(task.cancel)
            waits += 1
            try:
                yield awaited
            except BaseException as caught:  # it belongs to the coroutine
                error = caught


async def cancelled_at(number: int, coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Run a coroutine, cancelled at its await ``number`` (from 0); False if it was over before that."""
    counted = _Counted(coroutine, number)

    async def run() -> None:
        await counted

    task = asyncio.create_task(run())
    async with safety_net():
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return counted.is_cancelled


async def cancel_everywhere(
    make: Callable[[], Coroutine[Any, Any, Any]], check: Callable[[int], Awaitable[None]]
) -> int:
    """Cancel what ``make`` returns at each of its awaits, ``check`` after each; return how many there are."""
    number = 0
    while await cancelled_at(number, make()):
        await check(number)
        number += 1
    await check(number)
    return number
