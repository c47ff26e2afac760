"""Ending streams on every node: by an operator's word, or because a client opened a newer one elsewhere."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from gateway.auth.authenticator import Authenticator
from gateway.errors import Unavailable
from gateway.event import EventId
from gateway.hub.notices import Notices
from gateway.limits.hold import Hold
from gateway.limits.limits import Limits
from gateway.stream.streams import Streams

log = structlog.get_logger("gateway.streams")

END, REPLACED = "end", "replaced"


class Ending:
    """Connects the notices of nodes with what they end."""

    def __init__(
        self, notices: Notices, streams: Streams, limits: Limits, authenticator: Authenticator
    ) -> None:
        self._notices = notices
        self._streams = streams
        self._limits = limits
        self._authenticator = authenticator
        self._telling: set[asyncio.Task[None]] = set()
        notices.handle(END, self._end, kept=True)
        notices.handle(REPLACED, self._replaced, kept=False)
        notices.on_lost = self._lost
        if limits.users.must_ask:
            limits.on_replaced = self._tell

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
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await self._notices.close()

    def _end(self, about: Mapping[str, Any]) -> None:
        subject, channel = about.get("subject"), about.get("channel")
        if subject is not None:
            self._authenticator.forget(subject)
        ended = self._streams.end_of("revoked", subject=subject, channel=channel)
        # The subject is a person, and the log is not for persons.
        log.warning("streams_revoked", by_subject=subject is not None, channel=channel, ended=ended)

    def _lost(self) -> None:
        """Assume that everybody who showed a credential was meant."""
        self._streams.end_where("revoked", lambda stream: stream.hold.grant.expires is not None)

    def _tell(self, hold: Hold) -> None:
        assert hold.stream is not None
        about = {"client": hold.client, "by": hold.stream.id}
        task = asyncio.create_task(self._send(about), name="tell other nodes")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _send(self, about: Mapping[str, Any]) -> None:
        with suppress(Unavailable):  # an older stream elsewhere lives until its socket is found dead
            await self._notices.send(REPLACED, about)

    def _replaced(self, about: Mapping[str, Any]) -> None:
        self._limits.replaced_elsewhere(about["client"], about["by"])
