"""What nodes tell each other, through the log: the one thing that reaches all of them, in order.

A notice is an event of a channel that no client can name. Those that must not be missed have a history: a
node that was cut off reads them when it is back; and if even that is gone, it assumes the worst (`on_lost`).
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import structlog

from gateway.broker.base import Broker
from gateway.core.backoff import Backoff
from gateway.core.errors import Unavailable
from gateway.core.event import NOTICE, Draft, Event, EventId, Retention
from gateway.observability.background import UNCOUNTED, Background

log = structlog.get_logger("gateway.hub")

KEPT = Retention(1000, 15 * 60 * 1000)
"""How long a node may be cut off and still learn what it must."""

NOT_KEPT = Retention(0)

_PAGE = 1000

Handler = Callable[[Mapping[str, Any], EventId], None]


class Notices:
    """Sends and receives. Register handlers before the hub starts."""

    def __init__(self, broker: Broker, clock: Callable[[], int], background: Background = UNCOUNTED) -> None:
        self._broker = broker
        self._background = background
        self._clock = clock
        self._handlers: dict[str, tuple[Handler, Retention]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self.on_lost: Callable[[], None] = lambda: None
        """Called when notices may have been missed for good."""

    def handle(self, kind: str, handler: Handler, *, kept: bool) -> None:
        """Call ``handler`` for notices of a kind; ``kept`` are those that must not be missed."""
        self._handlers[NOTICE + kind] = handler, KEPT if kept else NOT_KEPT

    async def send(self, kind: str, about: Mapping[str, Any]) -> EventId:
        """Tell all nodes, this one too. Raises Unavailable. Cancelling leaves open whether it is told."""
        channel = NOTICE + kind
        _, retention = self._handlers[channel]
        draft = Draft(channel, msgspec.json.encode(about), self._clock(), retention)
        return (await self._broker.append([draft]))[0]

    def receive(self, event: Event) -> None:
        """Take a notice of the log."""
        handler, _ = self._handlers.get(event.channel, (None, None))
        if handler is not None:  # else a newer node's
            try:
                handler(msgspec.json.decode(event.payload), event.id)
            except Exception as error:  # what one node says must not stop what another follows
                self._background.failed("hub", error)

    def cut(self, after: EventId, until: EventId) -> None:
        """Read what was missed between two ids."""
        task = self._background.start("missed_notices", partial(self._catch_up, after, until))
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def close(self) -> None:
        """Stop reading; harmless when repeated."""
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    async def _catch_up(self, after: EventId, until: EventId) -> None:
        kept = [name for name, (_, retention) in self._handlers.items() if retention.events]
        backoff = Backoff(base=0.1, cap=3.0)
        while kept:
            try:
                pages = await self._broker.read(dict.fromkeys(kept, after), until, _PAGE)
            except Unavailable:
                await asyncio.sleep(backoff.next())
                continue
            except Exception as error:  # what cannot be read must not be taken for nothing
                self._background.failed("missed_notices", error)
                self.on_lost()
                return
            for page in pages.values():
                if page.floor > after:
                    log.error("notices_lost", after=str(after), until=str(until))
                    self.on_lost()
                for event in page.events:
                    self.receive(event)
            return
