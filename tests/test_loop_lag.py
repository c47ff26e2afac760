"""Liveness: what makes a loop late, and when that is for good."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway import loop_lag
from gateway.loop_lag import LoopLag
from tests.support.gateway import eventually


def at_once(call: Callable[[], None]) -> None:
    call()


def never(call: Callable[[], None]) -> None:
    """A pump that stands still."""


@asynccontextmanager
async def measuring(pump: Callable[[Callable[[], None]], None]) -> AsyncIterator[LoopLag]:
    lag = LoopLag(pump)
    lag.start()
    try:
        yield lag
    finally:
        lag.stop()


async def test_a_stall_is_told_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was frozen for long must not be restarted once it goes on."""
    monkeypatch.setattr(loop_lag, "LATE_SECONDS", 1.0)
    monkeypatch.setattr(loop_lag, "STUCK_SECONDS", 1.5)
    async with measuring(at_once) as lag:
        await asyncio.sleep(2 * loop_lag.TICK)
        time.sleep(2.0)
        assert not lag.is_stuck
        await eventually(lambda: lag.worst > 1.5)
        await eventually(lambda: lag.late_for == 0)
        assert not lag.is_stuck


async def test_a_loop_that_is_late_again_and_again_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers its probe now and then, and serves nobody."""
    monkeypatch.setattr(loop_lag, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(loop_lag, "STUCK_SECONDS", 0.5)
    async with measuring(at_once) as lag:
        await eventually(lambda: lag.is_stuck)


async def test_a_pump_that_stands_still_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop turns, and no stream gets anything: only a restart helps."""
    monkeypatch.setattr(loop_lag, "LATE_SECONDS", 0.3)
    monkeypatch.setattr(loop_lag, "STUCK_SECONDS", 0.5)
    async with measuring(never) as lag:
        await eventually(lambda: lag.is_stuck)


async def test_the_worst_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauge tells how it is, not how it once was."""
    monkeypatch.setattr(loop_lag, "WINDOW_SECONDS", 0.3)
    async with measuring(at_once) as lag:
        await asyncio.sleep(2 * loop_lag.TICK)
        time.sleep(1.0)
        await eventually(lambda: lag.worst > 0.5)
        await eventually(lambda: lag.worst < 0.5)
