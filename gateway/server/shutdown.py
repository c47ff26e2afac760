"""The shutdown of a node: its request, its phases and its deadline.

The phases, in order: `starting` (the public port is still closed), `serving`, `pre_drain` (unready, but
still serving, until load balancers have noticed), `streams` (no new connections; each stream is closed with
an invitation to reconnect, spread over ``timeouts.drain`` at most), `requests` (requests in progress are
answered, leases are released), `sources` (and then the log). `gateway.server.daemon.Daemon.stop` carries
them out.
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
"""How long a shutdown may take beyond ``timeouts.pre_drain``, ``timeouts.drain`` and ``timeouts.request``."""

PROGRESS_SECONDS = 5.0
"""How often a drain logs how many streams are left."""

CountStreams = Callable[[], int]


class Shutdown:
    """`request` and `force` begin it, `run` carries it out, `set_phase` reports each phase."""

    def __init__(
        self,
        timeouts: TimeoutsConfig,
        systemd: SystemdNotifier,
    ) -> None:
        self.phase: Phase = "starting"
        self.requested = asyncio.Event()
        """Set once a shutdown was requested."""
        self.forced = asyncio.Event()
        """Set once the shutdown must not wait for anything any more."""
        self._set_timeouts(timeouts)
        self._systemd = systemd
        self._skip_pre_drain = asyncio.Event()
        self._began_at = 0.0

    def apply(self, config: Config) -> None:
        """Apply the durations of a configuration, for a shutdown that has not begun."""
        self._set_timeouts(config.timeouts)

    def _set_timeouts(self, timeouts: TimeoutsConfig) -> None:
        self.max_seconds = timeouts.pre_drain + timeouts.drain + timeouts.request + GRACE_SECONDS
        """How long the shutdown may take."""
        self._pre_drain_seconds = timeouts.pre_drain

    def set_serving(self) -> None:
        """Report that the start is over: the public port accepts connections."""
        self.phase = "serving"

    def request(self, *, skip_pre_drain: bool = False) -> None:
        """Begin the shutdown, with or without ``timeouts.pre_drain``; harmless when repeated."""
        if skip_pre_drain:
            self._skip_pre_drain.set()
        self.requested.set()

    def force(self) -> None:
        """Stop without draining; harmless when repeated."""
        self.requested.set()
        self.forced.set()

    def on_signal(self, number: signal.Signals) -> None:
        """Begin the shutdown; the second signal forces it. SIGINT, from a terminal, skips the pre-drain."""
        if self.requested.is_set():
            self.force()
        else:
            log.info("signal", signal=number.name)
            self.request(skip_pre_drain=number is signal.SIGINT)

    async def run(self, stop: Callable[[], Coroutine[Any, Any, None]], count_streams: CountStreams) -> bool:
        """Wait for the request, run the phases; return False if the shutdown was forced or is overdue."""
        await self.requested.wait()
        phases = asyncio.create_task(self._run_phases(stop, count_streams), name="drain")
        forced = asyncio.create_task(self.forced.wait(), name="second signal")
        await asyncio.wait((phases, forced), return_when=asyncio.FIRST_COMPLETED, timeout=self.max_seconds)
        if phases.done():
            forced.cancel()
            await phases
            return True
        if forced.done():
            log.warning("shutdown_forced", phase=self.phase, streams=count_streams())
        else:
            forced.cancel()
            log.error("drain_overdue", phase=self.phase, seconds=self.max_seconds, streams=count_streams())
        phases.cancel()
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
        """Report that a phase begins."""
        self.requested.set()
        self.phase = phase
        self._began_at = self._began_at or time.monotonic()
        self._report_phase(facts)

    @asynccontextmanager
    async def log_progress(self, count_streams: CountStreams) -> AsyncIterator[None]:
        """Report from time to time how many streams are left, until the block ends."""

        async def report() -> None:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                self._report_phase({"streams": count_streams()})

        reporting = asyncio.create_task(report(), name="drain progress")
        try:
            yield
        finally:
            reporting.cancel()

    def _report_phase(self, facts: Mapping[str, float]) -> None:
        log.info("draining", phase=self.phase, **facts)
        shown = "".join(f", {fact:g} {name}" for name, fact in facts.items())
        self._systemd.notify_stopping(f"draining: {self.phase}{shown}", self.remaining_seconds)

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the shutdown is overdue."""
        return (
            max(0.0, self._began_at + self.max_seconds - time.monotonic())
            if self._began_at
            else self.max_seconds
        )

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the shutdown began; 0 before."""
        return time.monotonic() - self._began_at if self._began_at else 0.0
