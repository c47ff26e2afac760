"""The checks of webhooks' bodies, which take memory and time in proportion to the body, and more.

A body of 16 MiB may hold millions of values, which take a hundred MiB for as long as they are looked at. So
the checks of large ones take turns, and run in a thread, that the loop gets its own turns meanwhile.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from gateway.errors import Unavailable

IN_THREAD = 256 * 1024
"""Bytes of a body that is checked in a thread."""

LARGE = 1024 * 1024
"""Bytes of a body that is checked while no other large one is."""

WAIT_SECONDS = 20.0
"""How long a large body waits for its turn: a check takes about a second at the most."""

T = TypeVar("T")


class Checks:
    """Runs checks; one for all sources of a node."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, size: int, check: Callable[[], T]) -> T:
        """Return what the check of a body of ``size`` bytes returns, and raise what it raises.

        Raises Unavailable where others take too long. Cancelling is safe; a check that runs goes on.
        """
        if size <= IN_THREAD:
            return check()
        if size <= LARGE:
            return await asyncio.to_thread(check)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable("other large bodies are checked just now", retry_after=2) from None
        # The turn is over with the check, also where nobody waits for it any more.
        checking = asyncio.ensure_future(asyncio.to_thread(check))
        checking.add_done_callback(self._end)
        return await asyncio.shield(checking)

    def _end(self, checking: "asyncio.Future[T]") -> None:
        self._turn.release()
        if not checking.cancelled():
            checking.exception()  # whoever waited has it; without anybody it is nobody's
