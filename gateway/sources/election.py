"""Elects the node that reads an exclusive source: the one that holds its lease."""

import asyncio
from contextlib import suppress

import structlog

from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.core.event import FencingToken
from gateway.sources.base import SourceLog

log = structlog.get_logger("gateway.sources")

LEASE_SECONDS = 3.0
"""How long a lease lasts without renewal: a killed node is replaced within this and a poll."""

RENEW_SECONDS = 1.0
"""How often a lease is renewed."""

POLL_SECONDS = 0.5
"""How often the other candidates try to acquire it."""


class Election:
    """One node's candidacy for one source's lease, which lasts while the upstream is connected.

    While the log is unavailable, the last holder keeps `fence`; if another node took the lease meanwhile,
    the log rejects its appends.
    """

    def __init__(self, name: str, event_log: SourceLog) -> None:
        self.fence: FencingToken | None = None
        """The token of the lease while this node holds it."""
        self._name = name
        self._log = event_log
        self._stale_fence: FencingToken | None = None
        self._pending_acquire: asyncio.Future[FencingToken | None] | None = None
        self._is_candidate = False
        self._state_changed = asyncio.Event()
        self._lease_acquired = asyncio.Event()

    def enter(self) -> None:
        """Compete for the lease from now on."""
        self._is_candidate = True
        self._state_changed.set()

    def resign(self) -> None:
        """Release the lease, for a node whose upstream is connected; harmless when repeated."""
        self._is_candidate = False
        self._lease_acquired.clear()
        self._state_changed.set()

    def reacquire(self) -> None:
        """Release the lease and acquire it anew, with another token; another node may get it in between."""
        self._stale_fence, self.fence = self.fence or self._stale_fence, None
        self._lease_acquired.clear()
        self._state_changed.set()

    async def wait_for_lease(self) -> FencingToken:
        """Wait until this node holds the lease. Cancelling is safe."""
        while self.fence is None or not self._is_candidate:
            await self._lease_acquired.wait()
            if self.fence is None:
                self._lease_acquired.clear()
        return self.fence

    async def run(self) -> None:
        """Acquire and renew the lease while a candidate, until cancelled; then release it."""
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
                    await self._log.release_lease(self._stale_fence)
                    self._stale_fence = None
                self._pending_acquire = asyncio.ensure_future(
                    self._log.acquire_lease(self._name, LEASE_SECONDS)
                )
                fence = await asyncio.shield(self._pending_acquire)
                self._pending_acquire = None
        except (Unavailable, TimeoutError):
            if self._pending_acquire is not None:
                self._pending_acquire.cancel()
                self._pending_acquire = None
            return
        if self._stale_fence is not None:
            return  # `reacquire` was called meanwhile
        if (fence is None) != (self.fence is None):
            log.info("source_lease_acquired" if fence is not None else "source_lease_lost", source=self._name)
        self.fence = fence
        if fence is not None and self._is_candidate:
            self._lease_acquired.set()
        else:
            self._lease_acquired.clear()

    async def _release(self) -> None:
        # `run` was cancelled during a request: a lease that this acquires must be released.
        pending, self._pending_acquire = self._pending_acquire, None
        if pending is not None:
            if not pending.done():
                await asyncio.wait([pending], timeout=LEASE_SECONDS)
                pending.cancel()
            if pending.done() and not pending.cancelled() and pending.exception() is None:
                self._stale_fence = pending.result() or self._stale_fence
        # Stale until its release is confirmed: the next lease must not have the same token.
        self._stale_fence, self.fence = self.fence or self._stale_fence, None
        self._lease_acquired.clear()
        if self._stale_fence is not None:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self._log.release_lease(self._stale_fence)
                    self._stale_fence = None
