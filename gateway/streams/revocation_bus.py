"""Ending streams on every node: by an operator's word, or because a client opened a newer one elsewhere."""

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
from gateway.streams.quotas.client_limits import ClientLimits
from gateway.streams.quotas.stream_quota import StreamOrder
from gateway.streams.registry import StreamRegistry

log = structlog.get_logger("gateway.streams")

REVOKE_KIND, REPLACED_KIND = "end", "replaced"

MAX_STREAMS_PER_MESSAGE = 500
"""Streams in one notice."""


class RevocationBus:
    """Connects the notices of nodes with what they end."""

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
        control_channel.on_gap.add(self._on_gap)
        if limits.users.is_shared:
            limits.announce = self._announce

    async def revoke(self, subject: str | None, channel: str | None) -> EventId:
        """End the streams of a subject, or of a channel, or of both together, on every node.

        A subject's tickets end with them, unless a channel narrows it. Returns the id under which the log
        tells it. Raises Unavailable: then nothing is sure to have ended.
        """
        if subject is not None and channel is None:
            await self._authenticator.revoke_tickets(subject)
        return await self._control_channel.send(REVOKE_KIND, {"subject": subject, "channel": channel})

    async def close(self) -> None:
        """Tell nobody any more; harmless when repeated."""
        if self._send_task is not None:
            self._send_task.cancel()
            await asyncio.gather(self._send_task, return_exceptions=True)
        await self._control_channel.close()

    def _on_revoke(self, about: Mapping[str, Any], id: EventId) -> None:
        self._apply(Revocation(about.get("subject"), about.get("channel")))

    def _on_gap(self) -> None:
        """Assume that everybody who showed something was meant."""
        self._apply(Revocation(None, None))

    def _apply(self, revocation: Revocation) -> None:
        self._authenticator.apply_revocation(revocation)
        ended = self._streams.revoke(revocation)
        # The subject is a person, and the log is not for persons.
        by = revocation.subject is not None
        log.warning("streams_revoked", by_subject=by, channel=revocation.channel, ended=ended)

    async def _announce(self, client: str, connection: str) -> StreamOrder | None:
        """Tell all nodes of a stream that is about to open; returns its place in the log."""
        told: asyncio.Future[StreamOrder | None] = asyncio.get_running_loop().create_future()
        self._pending.append((client, connection, told))
        if self._send_task is None or self._send_task.done():
            self._send_task = self._background.start_task("client_announcements", self._send_announcements)
        return await told

    async def _send_announcements(self) -> None:
        """Send what waits; while a notice is on its way, others gather for the next one."""
        while self._pending:
            # One that left meanwhile replaces nobody: its client may still have the older stream.
            waiting = [each for each in self._pending if not each[2].done()]
            news, self._pending = waiting[:MAX_STREAMS_PER_MESSAGE], waiting[MAX_STREAMS_PER_MESSAGE:]
            if not news:
                return
            id: EventId | None = None
            try:
                told = [(client, connection) for client, connection, _ in news]
                id = await self._control_channel.send(REPLACED_KIND, {"replaced": told})
            except Unavailable:
                # An older stream elsewhere lives until its socket is found dead. All that wait go on so.
                news, self._pending = news + self._pending, []
            finally:
                for place, (_, _, answer) in enumerate(news):
                    if not answer.done():
                        answer.set_result(None if id is None else (*id, place))

    def _on_replaced(self, about: Mapping[str, Any], id: EventId) -> None:
        for place, (client, connection) in enumerate(about["replaced"]):
            self._limits.on_announced(client, connection, (*id, place))
