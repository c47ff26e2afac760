"""An event loop whose time is a number: where nothing is left to do, it jumps to the next timer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]  # asyncio's own
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def in_virtual_time(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for timers alone; hours of its time take no time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)


def stand_still(seconds: float) -> None:
    """Let time go by in which the running loop does nothing, as in a process that was stopped."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    loop.now += seconds
