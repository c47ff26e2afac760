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
from typing import Any, Literal, get_args

import structlog

from gateway.server.systemd import Systemd

log = structlog.get_logger("gateway")

GRACE_SECONDS = 5.0
"""How long an end may take beyond ``timeouts.pre_drain``, ``timeouts.drain`` and ``timeouts.request``."""

PROGRESS_SECONDS = 5.0
"""How often the log tells how many streams are left."""

Count = Callable[[], int]

Phase = Literal["starting", "serving", "pre_drain", "streams", "requests", "sources"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Shutdown:
    """`ask` for it, `carry_out` what was asked for, and `enter` each phase. Durations are in seconds."""

    def __init__(self, *, pre_drain: float, drain: float, request: float, systemd: Systemd) -> None:
        self.phase: Phase = "starting"
        self.asked = asyncio.Event()
        """Somebody wants this node to end."""
        self.hurried = asyncio.Event()
        """Somebody wants it to end now."""
        self.reconfigure(pre_drain=pre_drain, drain=drain, request=request)
        self._systemd = systemd
        self._at_once = asyncio.Event()
        self._began = 0.0

    def reconfigure(self, *, pre_drain: float, drain: float, request: float) -> None:
        """Take other durations, for an end that has not begun."""
        self.seconds = pre_drain + drain + request + GRACE_SECONDS
        """How long all of it may take."""
        self._pre_drain = pre_drain

    def serve(self) -> None:
        """Say that the start is over: the public port accepts connections."""
        self.phase = "serving"

    def ask(self, *, at_once: bool = False) -> None:
        """Begin to end, ``at_once`` without ``timeouts.pre_drain``; harmless when repeated."""
        if at_once:
            self._at_once.set()
        self.asked.set()

    def hurry(self) -> None:
        """End now; harmless when repeated."""
        self.asked.set()
        self.hurried.set()

    def signalled(self, number: signal.Signals) -> None:
        """Ask for the end; the second time, hurry. Who sends SIGINT sits at a terminal and waits for it."""
        if self.asked.is_set():
            self.hurry()
        else:
            log.info("signal", signal=number.name)
            self.ask(at_once=number is signal.SIGINT)

    async def carry_out(self, stop: Callable[[], Coroutine[Any, Any, None]], streams: Count) -> bool:
        """Wait until asked, go through the phases; return False if it was hurried, or is overdue."""
        await self.asked.wait()
        ending = asyncio.create_task(self._end(stop, streams), name="drain")
        hurried = asyncio.create_task(self.hurried.wait(), name="second signal")
        await asyncio.wait((ending, hurried), return_when=asyncio.FIRST_COMPLETED, timeout=self.seconds)
        if ending.done():
            hurried.cancel()
            await ending
            return True
        if hurried.done():
            log.warning("ended_by_second_signal", phase=self.phase, streams=streams())
        else:
            hurried.cancel()
            log.error("drain_overdue", phase=self.phase, seconds=self.seconds, streams=streams())
        ending.cancel()
        return False

    async def _end(self, stop: Callable[[], Coroutine[Any, Any, None]], streams: Count) -> None:
        if self._pre_drain and not self._at_once.is_set():
            self.enter("pre_drain", streams=streams(), seconds=self._pre_drain)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pre_drain):
                    await self._at_once.wait()
        await stop()

    def enter(self, phase: Phase, **facts: float) -> None:
        """Say that a phase begins."""
        self.asked.set()
        self.phase = phase
        self._began = self._began or time.monotonic()
        self._tell(facts)

    @asynccontextmanager
    async def progress(self, streams: Count) -> AsyncIterator[None]:
        """Say now and then how many streams are left, until the block ends."""

        async def tell() -> None:
            while True:
                await asyncio.sleep(PROGRESS_SECONDS)
                self._tell({"streams": streams()})

        telling = asyncio.create_task(tell(), name="drain progress")
        try:
            yield
        finally:
            telling.cancel()

    def _tell(self, facts: Mapping[str, float]) -> None:
        log.info("draining", phase=self.phase, **facts)
        told = "".join(f", {fact:g} {name}" for name, fact in facts.items())
        self._systemd.stopping(f"draining: {self.phase}{told}", self.left)

    @property
    def left(self) -> float:
        """Seconds until the end is overdue."""
        return max(0.0, self._began + self.seconds - time.monotonic()) if self._began else self.seconds

    @property
    def took(self) -> float:
        """Seconds since the end began."""
        return time.monotonic() - self._began if self._began else 0.0
