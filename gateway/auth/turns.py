"""Turns at something that only so many may do at once; no single address takes more than half of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import Unavailable


class Turns:
    """``most`` at once; others wait for ``seconds``, up to ``waiting`` of them."""

    def __init__(self, most: int, seconds: float, waiting: int) -> None:
        self._all = asyncio.Semaphore(most)
        self._half = max(1, most // 2)
        self._seconds = seconds
        self._waiting = waiting
        self._now = 0
        self._of_one: dict[str, tuple[asyncio.Semaphore, int]] = {}

    @asynccontextmanager
    async def turn(self, whose: str | None) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends. Raises Unavailable. Cancelling is safe."""
        if self._now >= self._waiting:
            raise _busy()
        own = self._enter(whose)
        self._now += 1
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await own.acquire()
                    try:
                        await self._all.acquire()
                    except BaseException:
                        own.release()
                        raise
            except TimeoutError:
                raise _busy() from None
            try:
                yield
            finally:
                self._all.release()
                own.release()
        finally:
            self._now -= 1
            self._leave(whose)

    def _enter(self, whose: str | None) -> asyncio.Semaphore:
        if whose is None:
            return asyncio.Semaphore()
        own, users = self._of_one.get(whose, (asyncio.Semaphore(self._half), 0))
        if users >= self._waiting // 2:
            raise _busy()
        self._of_one[whose] = own, users + 1
        return own

    def _leave(self, whose: str | None) -> None:
        if whose is None:
            return
        own, users = self._of_one.pop(whose)
        if users > 1:
            self._of_one[whose] = own, users - 1


def _busy() -> Unavailable:
    return Unavailable("too many questions wait for an answer just now", code="auth_unavailable")
