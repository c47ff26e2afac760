"""The canary: a control message that a node regularly sends to itself, to prove that events get through.

It takes the path of every event: through the broker and back into the hub, and through the pump, behind all
pending writes. A canary that returns in time proves all of them; one that does not makes the node unready.

It is small and costs the log one append. It has no history and no deduplication key, so it leaves nothing
behind: the next event of every channel still names its predecessor in its own channel. Other nodes ignore it.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from gateway.core.backoff import jittered
from gateway.core.errors import GatewayError
from gateway.core.event import EventId
from gateway.hub.control_channel import ControlChannel
from gateway.observability.metrics import PlainCounter
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.hub")

CANARY_KIND = "canary"

INTERVAL_SECONDS = 2.0
"""How often one is sent, jittered: fifty nodes add 25 events a second to a shared log."""

TIMEOUT_SECONDS = 5.0
"""How long one may take. All nodes of a busy Redis are late together, so load alone must not reach this."""

FIRST_TIMEOUT_SECONDS = 1.0
"""How long a start waits for the first one: a working log returns it in milliseconds."""


class Canary:
    """Sends canaries, and reports when none returns. ``run_after_writes`` is `Hub.run_after_writes`."""

    def __init__(
        self,
        control_channel: ControlChannel,
        run_after_writes: Callable[[Callable[[], None]], None],
        failures: PlainCounter,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._control_channel = control_channel
        self._background = background
        self._run_after_writes = run_after_writes
        self._failures = failures
        self._node_id = secrets.token_hex(4)
        self._sequence = 0
        self._received = asyncio.Event()  # of the current one
        self._round_trip_seconds = 0.0
        self._waiting_since: float | None = None  # when the first one that has not returned was sent
        self._last_error = ""
        self._is_proven = self._is_failure_logged = False
        self._task: asyncio.Task[None] | None = None
        control_channel.add_handler(CANARY_KIND, self._on_received, has_history=False)

    async def start(self) -> None:
        """Begin to send, and wait for the first one `FIRST_TIMEOUT_SECONDS` at the most."""
        first = asyncio.Event()
        self._task = self._background.start_task("canary", partial(self._run, first))
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_TIMEOUT_SECONDS):
                await first.wait()

    async def stop(self) -> None:
        """Stop sending; harmless when repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def round_trip_seconds(self) -> float:
        """Round trip of the last one, or the time since one was sent that has not returned, if longer."""
        return max(self._round_trip_seconds, self._waiting_seconds)

    @property
    def fault(self) -> str | None:
        """Why it is not proven that events get through; None while it is."""
        if not self._is_proven and not self._last_error:
            return "canary: none was back yet"
        if self._is_proven and self._waiting_seconds < TIMEOUT_SECONDS:
            return None
        return f"canary: sent {self._waiting_seconds:.1f} s ago and not back" + (
            f" ({self._last_error})" if self._last_error else ""
        )

    @property
    def _waiting_seconds(self) -> float:
        return 0.0 if self._waiting_since is None else asyncio.get_running_loop().time() - self._waiting_since

    async def _run(self, first: asyncio.Event) -> None:
        while True:
            await self._probe()
            first.set()
            await asyncio.sleep(jittered(INTERVAL_SECONDS, 0.2))

    async def _probe(self) -> None:
        loop = asyncio.get_running_loop()
        sent = loop.time()
        if self._waiting_since is None:
            self._waiting_since = sent
        self._sequence += 1
        self._received = back = asyncio.Event()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._control_channel.send(
                    CANARY_KIND, {"node": self._node_id, "number": self._sequence}
                )
                await back.wait()
        except TimeoutError:
            self._record_failure("")
        except GatewayError as error:
            self._record_failure(error.message)
        else:
            if self._is_failure_logged:
                log.info("canary_back", seconds=round(self._waiting_seconds, 1))
            self._round_trip_seconds, self._waiting_since, self._last_error = loop.time() - sent, None, ""
            self._is_proven, self._is_failure_logged = True, False

    def _record_failure(self, why: str) -> None:
        self._failures.value += 1
        self._last_error = why
        if not self._is_failure_logged:  # one line when they are lost, and one when they return
            log.warning("canary_lost", seconds=round(self._waiting_seconds, 1), error=why or None)
        self._is_failure_logged = True

    def _on_received(self, about: Mapping[str, Any], id: EventId) -> None:
        if about.get("node") == self._node_id and about.get("number") == self._sequence:
            self._run_after_writes(self._received.set)
