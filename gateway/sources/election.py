"""Which node reads a source that must be read once: the one with its lease."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.core.event import FencingToken

log = structlog.get_logger("gateway.sources")

LEASE_SECONDS = 3.0
"""How long a lease holds without being renewed: a killed node is replaced within this and a poll."""

RENEW_SECONDS = 1.0
"""How often a lease is renewed."""

POLL_SECONDS = 0.5
"""How often the others ask for it."""


@dataclass(frozen=True, slots=True)
class LeaseOperations:
    """The part of the log that elections use."""

    acquire: Callable[[str, float], Awaitable[FencingToken | None]]
    release: Callable[[FencingToken], Awaitable[None]]


class Election:
    """One node's candidature for one source. It stands while its upstream is connected.

    While the log is away, whoever had the lease goes on believing so: the log refuses its appends
    if it is wrong.
    """

    def __init__(self, name: str, leases: LeaseOperations) -> None:
        self.fence: FencingToken | None = None
        self._name = name
        self._leases = leases
        self._stale_fence: FencingToken | None = None
        self._pending_acquire: asyncio.Future[FencingToken | None] | None = None
        self._is_candidate = False
        self._state_changed = asyncio.Event()
        self._lease_acquired = asyncio.Event()

    def enter(self) -> None:
        """Ask for the lease from now on."""
        self._is_candidate = True
        self._state_changed.set()

    def resign(self) -> None:
        """Give the lease to whoever can read; harmless when repeated."""
        self._is_candidate = False
        self._lease_acquired.clear()
        self._state_changed.set()

    def reacquire(self) -> None:
        """Give the lease up and ask for it again, so that its next fence is another one.

        Whoever asks for it meanwhile may get it.
        """
        self._stale_fence, self.fence = self.fence or self._stale_fence, None
        self._lease_acquired.clear()
        self._state_changed.set()

    async def wait_for_lease(self) -> FencingToken:
        """Wait until this node has the lease. Cancelling is safe."""
        while self.fence is None or not self._is_candidate:
            await self._lease_acquired.wait()
            if self.fence is None:
                self._lease_acquired.clear()
        return self.fence

    async def run(self) -> None:
        """Campaign until cancelled."""
        try:
            while True:
                self._state_changed.clear()
                if self._is_candidate:
                    await self._acquire()
                else:
                    await self._release()
                pause = RENEW_SECONDS if self.fence is not None else POLL_SECONDS
                with suppress(TimeoutError):
                    async with asyncio.timeout(jittered(pause, 0.2) if self._is_candidate else None):
                        await self._state_changed.wait()
        finally:
            await self._release()

    async def _acquire(self) -> None:
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                if self._stale_fence is not None:
                    await self._leases.release(self._stale_fence)
                    self._stale_fence = None
                self._pending_acquire = asyncio.ensure_future(self._leases.acquire(self._name, LEASE_SECONDS))
                fence = await asyncio.shield(self._pending_acquire)
                self._pending_acquire = None
        except (Unavailable, TimeoutError):
            if self._pending_acquire is not None:
                self._pending_acquire.cancel()
                self._pending_acquire = None
            return
        if self._stale_fence is not None:
            return  # it was renewed while this was asked for
        if (fence is None) != (self.fence is None):
            log.info("source_lease_acquired" if fence is not None else "source_lease_lost", source=self._name)
        self.fence = fence
        if fence is not None and self._is_candidate:
            self._lease_acquired.set()
        else:
            self._lease_acquired.clear()

    async def _await_pending_acquire(self) -> None:
        """Wait for the question in which `run` was cancelled, so that a lease that it got is released."""
        asking, self._pending_acquire = self._pending_acquire, None
        if asking is None:
            return
        if not asking.done():
            await asyncio.wait([asking], timeout=LEASE_SECONDS)
            asking.cancel()
        if asking.done() and not asking.cancelled() and asking.exception() is None:
            self._stale_fence = asking.result() or self._stale_fence

    async def _release(self) -> None:
        await self._await_pending_acquire()
        # Until it is known to be back it is outdated: the next lease must not have the same token.
        self._stale_fence, self.fence = self.fence or self._stale_fence, None
        self._lease_acquired.clear()
        if self._stale_fence is not None:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._leases.release(self._stale_fence)
                    self._stale_fence = None
