"""Which node reads a source that must be read once: the one with its lease."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.core.event import Fence

log = structlog.get_logger("gateway.sources")

LEASE_SECONDS = 3.0
"""How long a lease holds without being renewed: a killed node is replaced within this and a poll."""

RENEW_SECONDS = 1.0
"""How often a lease is renewed."""

POLL_SECONDS = 0.5
"""How often the others ask for it."""


@dataclass(frozen=True, slots=True)
class Leases:
    """The part of the log that elections use."""

    lease: Callable[[str, float], Awaitable[Fence | None]]
    release: Callable[[Fence], Awaitable[None]]


class Election:
    """One node's candidature for one source. It stands while its upstream is connected.

    While the log is away, whoever had the lease goes on believing so: the log refuses its appends
    if it is wrong.
    """

    def __init__(self, name: str, leases: Leases) -> None:
        self.fence: Fence | None = None
        self._name = name
        self._leases = leases
        self._outdated: Fence | None = None
        self._asking: asyncio.Future[Fence | None] | None = None
        self._stands = False
        self._turn = asyncio.Event()
        self._won = asyncio.Event()

    def stand(self) -> None:
        """Ask for the lease from now on."""
        self._stands = True
        self._turn.set()

    def resign(self) -> None:
        """Give the lease to whoever can read; harmless when repeated."""
        self._stands = False
        self._won.clear()
        self._turn.set()

    def renew(self) -> None:
        """Give the lease up and ask for it again, so that its next fence is another one.

        Whoever asks for it meanwhile may get it.
        """
        self._outdated, self.fence = self.fence or self._outdated, None
        self._won.clear()
        self._turn.set()

    async def won(self) -> Fence:
        """Wait until this node has the lease. Cancelling is safe."""
        while self.fence is None or not self._stands:
            await self._won.wait()
            if self.fence is None:
                self._won.clear()
        return self.fence

    async def run(self) -> None:
        """Campaign until cancelled."""
        try:
            while True:
                self._turn.clear()
                if self._stands:
                    await self._ask()
                else:
                    await self._give_back()
                pause = RENEW_SECONDS if self.fence is not None else POLL_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(jittered(pause, 0.2) if self._stands else None):
                        await self._turn.wait()
        finally:
            await self._give_back()

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                if self._outdated is not None:
                    await self._leases.release(self._outdated)
                    self._outdated = None
                self._asking = asyncio.ensure_future(self._leases.lease(self._name, LEASE_SECONDS))
                fence = await asyncio.shield(self._asking)
                self._asking = None
        except (Unavailable, TimeoutError):
            if self._asking is not None:
                self._asking.cancel()
                self._asking = None
            return
        if self._outdated is not None:
            return  # it was renewed while this was asked for
        if (fence is None) != (self.fence is None):
            log.info("source_leads" if fence is not None else "source_stands_by", source=self._name)
        self.fence = fence
        if fence is not None and self._stands:
            self._won.set()
        else:
            self._won.clear()

    async def _settle(self) -> None:
        """Wait for the question in which `run` was cancelled, so that a lease that it got is released."""
        asking, self._asking = self._asking, None
        if asking is None:
            return
        if not asking.done():
            await asyncio.wait([asking], timeout=LEASE_SECONDS)
            asking.cancel()
        if asking.done() and not asking.cancelled() and asking.exception() is None:
            self._outdated = asking.result() or self._outdated

    async def _give_back(self) -> None:
        await self._settle()
        # Until it is known to be back it is outdated: the next lease must not have the same token.
        self._outdated, self.fence = self.fence or self._outdated, None
        self._won.clear()
        if self._outdated is not None:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._leases.release(self._outdated)
                    self._outdated = None
