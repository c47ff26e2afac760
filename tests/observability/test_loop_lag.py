"""Liveness: what makes a loop late, and when that is for good."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.observability import loop_lag
from gateway.observability.loop_lag import LoopLagMonitor
from tests.support.gateway import eventually
from tests.support.virtual import in_virtual_time, stand_still


def at_once(call: Callable[[], None]) -> None:
    call()


def never(call: Callable[[], None]) -> None:
    """A pump that stands still."""


@asynccontextmanager
async def measuring(pump: Callable[[Callable[[], None]], None]) -> AsyncIterator[LoopLagMonitor]:
    lag = LoopLagMonitor(pump)
    lag.start()
    try:
        yield lag
    finally:
        lag.stop()


def test_a_stall_is_reported_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen for long must not be restarted once it goes on."""
    monkeypatch.setattr(loop_lag, "LATE_THRESHOLD_SECONDS", 1.0)
    monkeypatch.setattr(loop_lag, "STUCK_AFTER_SECONDS", 1.5)

    async def main() -> None:
        async with measuring(at_once) as lag:
            await asyncio.sleep(2.5 * loop_lag.TICK_SECONDS)
            stand_still(2.0)
            assert not lag.is_stuck
            await eventually(lambda: lag.worst_lag_seconds > 1.5)
            await eventually(lambda: lag.late_seconds == 0)
            assert not lag.is_stuck

    in_virtual_time(main())


def test_a_loop_that_is_late_again_and_again_is_stuck() -> None:
    """It answers its probe now and then, and serves nobody."""

    async def main() -> None:
        async with measuring(at_once) as lag:
            for _ in range(11):
                assert not lag.is_stuck
                await asyncio.sleep(loop_lag.TICK_SECONDS / 2)
                stand_still(3.0)
            await asyncio.sleep(loop_lag.TICK_SECONDS / 2)
            assert lag.is_stuck, "all looks of more than 30 seconds were late"

    in_virtual_time(main())


def test_a_pump_that_stands_still_is_stuck() -> None:
    """The loop turns, and no stream gets anything: only a restart helps."""

    async def main() -> None:
        async with measuring(never) as lag:
            await asyncio.sleep(loop_lag.STUCK_AFTER_SECONDS)
            assert not lag.is_stuck
            await eventually(lambda: lag.is_stuck)

    in_virtual_time(main())


def test_the_worst_is_forgotten() -> None:
    """The gauge tells how it is, not how it once was."""

    async def main() -> None:
        async with measuring(at_once) as lag:
            await asyncio.sleep(2.5 * loop_lag.TICK_SECONDS)
            stand_still(1.0)
            await eventually(lambda: lag.worst_lag_seconds > 0.5)
            await asyncio.sleep(loop_lag.WINDOW_SECONDS - 2)
            assert lag.worst_lag_seconds > 0.5
            await eventually(lambda: lag.worst_lag_seconds < 0.5)

    in_virtual_time(main())
