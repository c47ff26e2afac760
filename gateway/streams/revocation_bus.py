"""Closes streams on every node: those that an operator revokes, and those that a newer stream replaces."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from gateway.auth.authenticator import Authenticator
from gateway.auth.revocation import Revocation
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.hub.control_channel import ControlChannel
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.quotas.client_limits import ClientLimits, StreamOrder
from gateway.streams.registry import StreamRegistry

log = structlog.get_logger("gateway.streams")

REVOKE_KIND, REPLACED_KIND = "end", "replaced"

MAX_STREAMS_PER_MESSAGE = 500
"""Streams in one announcement."""


class RevocationBus:
    """Sends revocations and announcements of new streams to all nodes, and applies those that arrive."""

    def __init__(
        self,
        control_channel: ControlChannel,
        streams: StreamRegistry,
        limits: ClientLimits,
        authenticator: Authenticator,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._control_channel = control_channel
        self._background = background
        self._streams = streams
        self._limits = limits
        self._authenticator = authenticator
        self._pending: list[tuple[str, str, asyncio.Future[StreamOrder | None]]] = []
        self._send_task: asyncio.Task[None] | None = None
        control_channel.add_handler(REVOKE_KIND, self._on_revoke, has_history=True)
        control_channel.add_handler(REPLACED_KIND, self._on_replaced, has_history=False)
        control_channel.on_gap = self._on_gap
        if limits.users.is_shared:
            limits.announce = self._announce

    async def revoke(self, subject: str | None, channel: str | None) -> EventId:
        """Close the streams of a subject, of a channel, or of both together, on every node.

        A subject's tickets are revoked, too, unless a channel narrows it. Returns the id of the revocation in
        the log. Raises Unavailable: then it may not have happened.
        """
        if subject is not None and channel is None:
            await self._authenticator.revoke_tickets(subject)
        return await self._control_channel.send(REVOKE_KIND, {"subject": subject, "channel": channel})

    async def close(self) -> None:
        """Send and receive nothing more; harmless when repeated."""
        if self._send_task is not None:
            self._send_task.cancel()
            await asyncio.gather(self._send_task, return_exceptions=True)
        await self._control_channel.close()

    def _on_revoke(self, about: Mapping[str, Any], id: EventId) -> None:
        self._apply(Revocation(about.get("subject"), about.get("channel")))

    def _on_gap(self) -> None:
        """Assume that a missed revocation was of all streams with a grant."""
        self._apply(Revocation(None, None))

    def _apply(self, revocation: Revocation) -> None:
        self._authenticator.apply_revocation(revocation)
        ended = self._streams.revoke(revocation)
        # Not the subject itself: it is personal data.
        by = revocation.subject is not None
        log.warning("streams_revoked", by_subject=by, channel=revocation.channel, ended=ended)

    async def _announce(self, client: str, connection: str) -> StreamOrder | None:
        """Announce a stream that is about to open to all nodes; returns its order, None if that failed."""
        order: asyncio.Future[StreamOrder | None] = asyncio.get_running_loop().create_future()
        self._pending.append((client, connection, order))
        if self._send_task is None or self._send_task.done():
            self._send_task = self._background.start_task("client_announcements", self._send_announcements)
        return await order

    async def _send_announcements(self) -> None:
        """Send pending announcements; while one message is on its way, others gather for the next one."""
        while self._pending:
            # A stream that was cancelled meanwhile replaces nothing: its client may still have the older one.
            waiting = [each for each in self._pending if not each[2].done()]
            batch, self._pending = waiting[:MAX_STREAMS_PER_MESSAGE], waiting[MAX_STREAMS_PER_MESSAGE:]
            if not batch:
                return
            id: EventId | None = None
            try:
                streams = [(client, connection) for client, connection, _ in batch]
                id = await self._control_channel.send(REPLACED_KIND, {"replaced": streams})
            except Unavailable:
                # All open without it: an older stream elsewhere lives until its connection is found dead.
                batch, self._pending = batch + self._pending, []
            finally:
                for position, (_, _, order) in enumerate(batch):
                    if not order.done():
                        order.set_result(None if id is None else (*id, position))

    def _on_replaced(self, about: Mapping[str, Any], id: EventId) -> None:
        for position, (client, connection) in enumerate(about["replaced"]):
            self._limits.on_announced(client, connection, (*id, position))
