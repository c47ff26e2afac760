"""Forwards acknowledgements for streams of other nodes through the log.

They are collected for a moment, so that the log gets a few messages a second and not one for each
acknowledgement. Only verified nonces come here, each is forwarded once, and of a stream only the newest: a
client that repeats itself causes no traffic.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from gateway.core.backoff import Backoff
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.hub.control_channel import ControlChannel
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.acks.tracker import AckTracker

ACKS_KIND = "answered"

BATCH_SECONDS = 0.25
"""How long acknowledgements are collected for one message."""

MAX_ACKS_PER_MESSAGE = 500
"""Acknowledgements in one message."""

MAX_PENDING = 20_000
"""Streams whose acknowledgements may wait to be forwarded."""

MAX_FORWARDED = 20_000
"""Streams whose last forwarded acknowledgement is remembered."""


class AckForwarder:
    """Sends acknowledgements to other nodes, and receives theirs. Without a shared log there are none."""

    def __init__(
        self,
        control_channel: ControlChannel,
        tracker: AckTracker,
        *,
        is_shared: bool,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._control_channel = control_channel
        self._background = background
        self._tracker = tracker
        self._is_shared = is_shared
        self._pending: dict[str, int] = {}
        self._forwarded: BoundedDict[str, int] = BoundedDict(MAX_FORWARDED)
        self._send_task: asyncio.Task[None] | None = None
        control_channel.add_handler(ACKS_KIND, self._on_acks, has_history=False)

    def forward(self, connection: str, number: int) -> bool:
        """Forward an acknowledgement to the node that has the stream; return False if there can be none.

        Raises Unavailable if too many are pending, as the log cannot be reached.
        """
        if not self._is_shared:
            return False
        if number <= max(self._forwarded.get(connection, 0), self._pending.get(connection, 0)):
            return True
        if connection not in self._pending and len(self._pending) >= MAX_PENDING:
            raise Unavailable("other nodes cannot be reached", retry_after=2)
        self._pending[connection] = number
        if self._send_task is None or self._send_task.done():
            self._send_task = self._background.start_task("ack_forwarder", self._send_batches)
        return True

    async def close(self) -> None:
        """Drop what is pending; harmless when repeated."""
        if self._send_task is not None:
            self._send_task.cancel()
            await asyncio.gather(self._send_task, return_exceptions=True)

    async def _send_batches(self) -> None:
        backoff = Backoff(base_seconds=BATCH_SECONDS, cap_seconds=2.0)
        delay = BATCH_SECONDS
        while self._pending:
            await asyncio.sleep(delay)
            batch = dict(list(self._pending.items())[:MAX_ACKS_PER_MESSAGE])
            try:
                await self._control_channel.send(ACKS_KIND, {"answered": batch})
            except Unavailable:
                delay = backoff.next_delay()
                continue
            for connection, number in batch.items():
                self._mark_forwarded(connection, number)
            backoff.reset()
            delay = 0.0 if len(self._pending) >= MAX_ACKS_PER_MESSAGE else BATCH_SECONDS

    def _mark_forwarded(self, connection: str, number: int) -> None:
        if self._pending.get(connection) == number:  # else a newer one arrived meanwhile
            del self._pending[connection]
        self._forwarded.put(connection, number)

    def _on_acks(self, about: Mapping[str, Any], id: EventId) -> None:
        for connection, number in about["answered"].items():
            self._tracker.acknowledge(connection, number)
