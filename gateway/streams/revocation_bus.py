"""Ending streams on every node: by an operator's word, or because a client opened a newer one elsewhere."""

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from gateway.auth.authenticator import Authenticator
from gateway.auth.revocation import Revocation
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.hub.control_channel import Notices
from gateway.observability.background import UNCOUNTED, Background
from gateway.streams.quotas.limits import Limits
from gateway.streams.quotas.quota import Order
from gateway.streams.registry import Streams

log = structlog.get_logger("gateway.streams")

END, REPLACED = "end", "replaced"

MOST = 500
"""Streams in one notice."""


class Ending:
    """Connects the notices of nodes with what they end."""

    def __init__(
        self,
        notices: Notices,
        streams: Streams,
        limits: Limits,
        authenticator: Authenticator,
        background: Background = UNCOUNTED,
    ) -> None:
        self._notices = notices
        self._background = background
        self._streams = streams
        self._limits = limits
        self._authenticator = authenticator
        self._untold: list[tuple[str, str, asyncio.Future[Order | None]]] = []
        self._telling: asyncio.Task[None] | None = None
        notices.handle(END, self._end, kept=True)
        notices.handle(REPLACED, self._replaced, kept=False)
        notices.on_lost = self._lost
        if limits.users.must_ask:
            limits.announce = self._announce

    async def end(self, subject: str | None, channel: str | None) -> EventId:
        """End the streams of a subject, or of a channel, or of both together, on every node.

        A subject's tickets end with them, unless a channel narrows it. Returns the id under which the log
        tells it. Raises Unavailable: then nothing is sure to have ended.
        """
        if subject is not None and channel is None:
            await self._authenticator.end(subject)
        return await self._notices.send(END, {"subject": subject, "channel": channel})

    async def close(self) -> None:
        """Tell nobody any more; harmless when repeated."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        await self._notices.close()

    def _end(self, about: Mapping[str, Any], id: EventId) -> None:
        self._revoke(Revocation(about.get("subject"), about.get("channel")))

    def _lost(self) -> None:
        """Assume that everybody who showed something was meant."""
        self._revoke(Revocation(None, None))

    def _revoke(self, revocation: Revocation) -> None:
        self._authenticator.forget(revocation)
        ended = self._streams.revoke(revocation)
        # The subject is a person, and the log is not for persons.
        by = revocation.subject is not None
        log.warning("streams_revoked", by_subject=by, channel=revocation.channel, ended=ended)

    async def _announce(self, client: str, connection: str) -> Order | None:
        """Tell all nodes of a stream that is about to open; returns its place in the log."""
        told: asyncio.Future[Order | None] = asyncio.get_running_loop().create_future()
        self._untold.append((client, connection, told))
        if self._telling is None or self._telling.done():
            self._telling = self._background.start("client_announcements", self._tell)
        return await told

    async def _tell(self) -> None:
        """Send what waits; while a notice is on its way, others gather for the next one."""
        while self._untold:
            # One that left meanwhile replaces nobody: its client may still have the older stream.
            waiting = [each for each in self._untold if not each[2].done()]
            news, self._untold = waiting[:MOST], waiting[MOST:]
            if not news:
                return
            id: EventId | None = None
            try:
                told = [(client, connection) for client, connection, _ in news]
                id = await self._notices.send(REPLACED, {"replaced": told})
            except Unavailable:
                # An older stream elsewhere lives until its socket is found dead. All that wait go on so.
                news, self._untold = news + self._untold, []
            finally:
                for place, (_, _, answer) in enumerate(news):
                    if not answer.done():
                        answer.set_result(None if id is None else (*id, place))

    def _replaced(self, about: Mapping[str, Any], id: EventId) -> None:
        for place, (client, connection) in enumerate(about["replaced"]):
            self._limits.announced(client, connection, (*id, place))
