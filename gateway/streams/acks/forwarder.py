"""Answers that landed here and are for streams of other nodes: told to all of them through the log.

They are gathered for a moment, so that the log gets a few notices a second and not one for each answer. Only
true nonces come here, each is told once, and of a stream only its newest: a client can repeat itself as
often as it likes, and the log does not notice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from gateway.core.backoff import Backoff
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.hub.control_channel import Notices
from gateway.observability.background import UNCOUNTED, Background
from gateway.streams.acks.tracker import Acks

ANSWERED = "answered"

GATHER_SECONDS = 0.25
"""How long answers are gathered for one notice."""

MOST = 500
"""Answers in one notice."""

UNTOLD = 20_000
"""Streams whose answers may wait to be told."""

TOLD = 20_000
"""Streams of which it is remembered what was told."""


class Elsewhere:
    """Tells other nodes, and hears what they tell. Without a shared log there are none."""

    def __init__(
        self, notices: Notices, acks: Acks, *, is_shared: bool, background: Background = UNCOUNTED
    ) -> None:
        self._notices = notices
        self._background = background
        self._acks = acks
        self._is_shared = is_shared
        self._untold: dict[str, int] = {}
        self._told: OrderedDict[str, int] = OrderedDict()
        self._telling: asyncio.Task[None] | None = None
        notices.handle(ANSWERED, self._hear, kept=False)

    def tell(self, connection: str, number: int) -> bool:
        """Let the node that has a stream know of an answer; False where there can be no such node.

        Raises Unavailable where too many wait, as the log cannot be reached.
        """
        if not self._is_shared:
            return False
        if number <= max(self._told.get(connection, 0), self._untold.get(connection, 0)):
            return True
        if connection not in self._untold and len(self._untold) >= UNTOLD:
            raise Unavailable("other nodes cannot be told just now", retry_after=2)
        self._untold[connection] = number
        if self._telling is None or self._telling.done():
            self._telling = self._background.start("ack_relay", self._tell)
        return True

    async def close(self) -> None:
        """Tell nobody any more; harmless when repeated."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)

    async def _tell(self) -> None:
        backoff = Backoff(base=GATHER_SECONDS, cap=2.0)
        delay = GATHER_SECONDS
        while self._untold:
            await asyncio.sleep(delay)
            news = {connection: self._untold[connection] for connection in list(self._untold)[:MOST]}
            try:
                await self._notices.send(ANSWERED, {"answered": news})
            except Unavailable:
                delay = backoff.next()
                continue
            for connection, number in news.items():
                self._remember(connection, number)
            backoff.reset()
            delay = 0.0 if len(self._untold) >= MOST else GATHER_SECONDS

    def _remember(self, connection: str, number: int) -> None:
        if self._untold.get(connection) == number:  # else it answered again meanwhile
            del self._untold[connection]
        self._told[connection] = number
        self._told.move_to_end(connection)
        if len(self._told) > TOLD:
            self._told.popitem(last=False)

    def _hear(self, about: Mapping[str, Any], id: EventId) -> None:
        for connection, number in about["answered"].items():
            self._acks.answered(connection, number)
