"""How a node ends: who asked for it, how far it has come, and when it is overdue.

The phases, in their order: `starting` (the public port is still closed), `serving`, `pre_drain` (unready, and
everything is served as ever, until balancers have seen it), `streams` (no new connections; each stream is
told to come back, evenly over ``timeouts.drain`` at the most), `requests` (those under way are answered,
leases are given back), `sources` (and the log). `Daemon.stop` does what they say; here it is told.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog

from gateway.admin.status_report import Phase
from gateway.config.model.config import Config, TimeoutsConfig
from gateway.server.systemd import SystemdNotifier

log = structlog.get_logger("gateway")

GRACE_SECONDS = 5.0
"""How long an end may take beyond ``timeouts.pre_drain``, ``timeouts.drain`` and ``timeouts.request``."""

PROGRESS_SECONDS = 5.0
"""How often the log tells how many streams are left."""

CountStreams = Callable[[], int]


class Shutdown:
    """`ask` for it, `carry_out` what was asked for, and `enter` each phase. Durations are in seconds."""

    def __init__(
        self,
        timeouts: TimeoutsConfig,
        systemd: SystemdNotifier,
    ) -> None:
        self.phase: Phase = "starting"
        self.requested = asyncio.Event()
        """Somebody wants this node to end."""
        self.forced = asyncio.Event()
        """Somebody wants it to end now."""
        self._set_timeouts(timeouts)
        self._systemd = systemd
        self._skip_pre_drain = asyncio.Event()
        self._began_at = 0.0

    def apply(self, config: Config) -> None:
        """Take the durations of a configuration, for a shutdown that has not begun."""
        self._set_timeouts(config.timeouts)

    def _set_timeouts(self, timeouts: TimeoutsConfig) -> None:
        self.max_seconds = timeouts.pre_drain + timeouts.drain + timeouts.request + GRACE_SECONDS
        """How long the shutdown may take."""
        self._pre_drain_seconds = timeouts.pre_drain

    def set_serving(self) -> None:
        """Say that the start is over: the public port accepts connections."""
        self.phase = "serving"

    def request(self, *, skip_pre_drain: bool = False) -> None:
        """Begin to end, ``at_once`` without ``timeouts.pre_drain``; harmless when repeated."""
        if skip_pre_drain:
            self._skip_pre_drain.set()
        self.requested.set()

    def force(self) -> None:
        """End now; harmless when repeated."""
        self.requested.set()
        self.forced.set()

    def on_signal(self, number: signal.Signals) -> None:
        """Ask for the end; the second time, hurry. Who sends SIGINT sits at a terminal and waits for it."""
        if self.requested.is_set():
            self.force()
        else:
            log.info("signal", signal=number.name)
            self.request(skip_pre_drain=number is signal.SIGINT)

    async def run(self, stop: Callable[[], Coroutine[Any, Any, None]], count_streams: CountStreams) -> bool:
        """Wait until asked, go through the phases; return False if it was hurried, or is overdue."""
        await self.requested.wait()
        ending = asyncio.create_task(self._run_phases(stop, count_streams), name="drain")
        hurried = asyncio.create_task(self.forced.wait(), name="second signal")
        await asyncio.wait((ending, hurried), return_when=asyncio.FIRST_COMPLETED, timeout=self.max_seconds)
        if ending.done():
            hurried.cancel()
            await ending
            return True
        if hurried.done():
            log.warning("shutdown_forced", phase=self.phase, streams=count_streams())
        else:
            hurried.cancel()
            log.error("drain_overdue", phase=self.phase, seconds=self.max_seconds, streams=count_streams())
        ending.cancel()
        return False

    async def _run_phases(
        self, stop: Callable[[], Coroutine[Any, Any, None]], count_streams: CountStreams
    ) -> None:
        if self._pre_drain_seconds and not self._skip_pre_drain.is_set():
            self.set_phase("pre_drain", streams=count_streams(), seconds=self._pre_drain_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pre_drain_seconds):
                    await self._skip_pre_drain.wait()
        await stop()

    def set_phase(self, phase: Phase, **facts: float) -> None:
        """Say that a phase begins."""
        self.requested.set()
        self.phase = phase
        self._began_at = self._began_at or time.monotonic()
        self._report_phase(facts)

    @asynccontextmanager
    async def log_progress(self, count_streams: CountStreams) -> AsyncIterator[None]:
        """Say now and then how many streams are left, until the block ends."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                self._report_phase({"streams": count_streams()})

        telling = asyncio.create_task(tell(), name="drain progress")
        try:
            yield
        finally:
            telling.cancel()

    def _report_phase(self, facts: Mapping[str, float]) -> None:
        log.info("draining", phase=self.phase, **facts)
        told = "".join(f", {fact:g} {name}" for name, fact in facts.items())
        self._systemd.notify_stopping(f"draining: {self.phase}{told}", self.remaining_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the end is overdue."""
        return (
            max(0.0, self._began_at + self.max_seconds - time.monotonic())
            if self._began_at
            else self.max_seconds
        )

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the end began."""
        return time.monotonic() - self._began_at if self._began_at else 0.0
