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
from gateway.core.event import CONTROL_CHANNEL_PREFIX, Draft, Event, EventId, Retention
from gateway.core.observers import Observers
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.hub")

RETENTION = Retention(1000, 15 * 60 * 1000)
"""How long a node may be cut off and still learn what it must."""

NO_RETENTION = Retention(0)

_PAGE_EVENTS = 1000

ControlHandler = Callable[[Mapping[str, Any], EventId], None]


class ControlChannel:
    """Sends and receives. Register handlers before the hub starts."""

    def __init__(
        self, broker: Broker, clock: Callable[[], int], background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        self._broker = broker
        self._background = background
        self._clock = clock
        self._handlers: dict[str, tuple[ControlHandler, Retention]] = {}
        self._read_tasks: set[asyncio.Task[None]] = set()
        self.on_gap = Observers[()]()
        """Called when notices may have been missed for good."""

    def add_handler(self, kind: str, handler: ControlHandler, *, has_history: bool) -> None:
        """Call ``handler`` for notices of a kind; ``kept`` are those that must not be missed."""
        self._handlers[CONTROL_CHANNEL_PREFIX + kind] = handler, RETENTION if has_history else NO_RETENTION

    async def send(self, kind: str, about: Mapping[str, Any]) -> EventId:
        """Tell all nodes, this one too. Raises Unavailable. Cancelling leaves open whether it is told."""
        channel = CONTROL_CHANNEL_PREFIX + kind
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
                self._background.record_failure("hub", error)

    def read_missed(self, after: EventId, until: EventId) -> None:
        """Read what was missed between two ids."""
        task = self._background.start_task("control_channel", partial(self._read_range, after, until))
        self._read_tasks.add(task)
        task.add_done_callback(self._read_tasks.discard)

    async def close(self) -> None:
        """Stop reading; harmless when repeated."""
        for task in self._read_tasks:
            task.cancel()
        await asyncio.gather(*self._read_tasks, return_exceptions=True)

    async def _read_range(self, after: EventId, until: EventId) -> None:
        kept = [name for name, (_, retention) in self._handlers.items() if retention.max_events]
        backoff = Backoff(base_seconds=0.1, cap_seconds=3.0)
        while kept:
            try:
                pages = await self._broker.read(dict.fromkeys(kept, after), until, _PAGE_EVENTS)
            except Unavailable:
                await asyncio.sleep(backoff.next_delay())
                continue
            except Exception as error:  # what cannot be read must not be taken for nothing
                self._background.record_failure("control_channel", error)
                self.on_gap()
                return
            for page in pages.values():
                if page.floor > after:
                    log.error("control_messages_lost", after=str(after), until=str(until))
                    self.on_gap()
                for event in page.events:
                    self.receive(event)
            return
