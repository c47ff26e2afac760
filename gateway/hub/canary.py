"""Proof that events get through: a notice that this node appends now and then, and waits for.

It goes the way of every event, through the broker and back to this node, into the hub, and through its
pump, behind all writes that wait there. What comes back in time proves all of them; what does not makes
the node unready and says so.

It is small and costs the log one append. It has no history and no deduplication key, so nothing of it
stays: the next event of every channel still names the one before it in its own channel. Other nodes see
it and pass over it.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog

from gateway.core.backoff import jittered
from gateway.core.errors import GatewayError
from gateway.core.event import EventId
from gateway.hub.control_channel import Notices
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Tally

log = structlog.get_logger("gateway.hub")

CANARY = "canary"

EVERY_SECONDS = 2.0
"""How often one flies, jittered: fifty nodes add 25 events a second to the log that they share."""

LATE_SECONDS = 5.0
"""How long one may take. All nodes of a busy Redis are late together, so load alone must never reach this."""

FIRST_SECONDS = 1.0
"""How long a start waits for the first one: a log that works has it back in milliseconds."""


class Canary:
    """`start` it behind the hub. ``pump`` calls what it is given behind all writes that wait."""

    def __init__(
        self,
        notices: Notices,
        pump: Callable[[Callable[[], None]], None],
        failures: Tally,
        background: Background = UNCOUNTED,
    ) -> None:
        self._notices = notices
        self._background = background
        self._pump = pump
        self._failures = failures
        self._node = secrets.token_hex(4)
        self._number = 0
        self._back = asyncio.Event()  # of the one that flies
        self._seconds = 0.0
        self._since: float | None = None  # when the first one was sent that is not back
        self._why = ""
        self._is_proven = self._is_told = False
        self._task: asyncio.Task[None] | None = None
        notices.handle(CANARY, self._landed, kept=False)

    async def start(self) -> None:
        """Send the first one, and give it `FIRST_SECONDS`; go on for ever."""
        first = asyncio.Event()
        self._task = self._background.start("canary", partial(self._run, first))
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await first.wait()
        except TimeoutError:
            pass

    async def stop(self) -> None:
        """End; harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def seconds(self) -> float:
        """How long the last one was on its way; or how long one has been away, if that is longer."""
        return max(self._seconds, self._away)

    @property
    def fault(self) -> str | None:
        """Why nobody knows whether events get through; None while that is proven."""
        if not self._is_proven and not self._why:
            return "canary: none was back yet"
        if self._is_proven and self._away < LATE_SECONDS:
            return None
        return f"canary: sent {self._away:.1f} s ago and not back" + (f" ({self._why})" if self._why else "")

    @property
    def _away(self) -> float:
        return 0.0 if self._since is None else asyncio.get_running_loop().time() - self._since

    async def _run(self, first: asyncio.Event) -> None:
        while True:
            await self._fly()
            first.set()
            await asyncio.sleep(jittered(EVERY_SECONDS, 0.2))

    async def _fly(self) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        if self._since is None:
            self._since = sent
        self._number += 1
        self._back = back = asyncio.Event()
        try:
            async with asyncio.timeout(LATE_SECONDS):
                await self._notices.send(CANARY, {"node": self._node, "number": self._number})
                await back.wait()
        except TimeoutError:
            self._lost("")
        except GatewayError as error:
            self._lost(error.message)
        else:
            if self._is_told:
                log.info("canary_back", seconds=round(self._away, 1))
            self._seconds, self._since, self._why = loop.time() - sent, None, ""
            self._is_proven, self._is_told = True, False

    def _lost(self, why: str) -> None:
        self._failures.value += 1
        self._why = why
        if not self._is_told:  # one line when they stay away, and one when they are back
            log.warning("canary_lost", seconds=round(self._away, 1), error=why or None)
        self._is_told = True

    def _landed(self, about: Mapping[str, Any], id: EventId) -> None:
        if about.get("node") == self._node and about.get("number") == self._number:
            self._pump(self._back.set)
