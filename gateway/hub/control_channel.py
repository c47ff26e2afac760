"""Control messages between nodes, through the log: it reaches all nodes, in order.

A control message is an event of a channel that clients cannot name. Kinds that must not be missed have a
history, which a node reads after it was cut off; if the history has expired, `ControlChannel.on_gap` is
called.
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
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.hub")

RETENTION = Retention(1000, 15 * 60 * 1000)
"""How many messages, and for how long, a node that is cut off can read later."""

NO_RETENTION = Retention(0)

_PAGE_EVENTS = 1000

ControlHandler = Callable[[Mapping[str, Any], EventId], None]


class ControlChannel:
    """Sends and receives control messages. Add handlers before the hub starts."""

    def __init__(
        self, broker: Broker, clock: Callable[[], int], background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        self._broker = broker
        self._background = background
        self._clock = clock
        self._handlers: dict[str, tuple[ControlHandler, Retention]] = {}
        self._read_tasks: set[asyncio.Task[None]] = set()
        self.on_gap: Callable[[], None] = lambda: None
        """Called when messages may be lost."""

    def add_handler(self, kind: str, handler: ControlHandler, *, has_history: bool) -> None:
        """Call ``handler`` for messages of a kind; ``has_history``: they must not be missed."""
        self._handlers[CONTROL_CHANNEL_PREFIX + kind] = handler, RETENTION if has_history else NO_RETENTION

    async def send(self, kind: str, about: Mapping[str, Any]) -> EventId:
        """Send a message to all nodes, this one included. Raises Unavailable.

        Cancelling does not tell whether it is sent.
        """
        channel = CONTROL_CHANNEL_PREFIX + kind
        _, retention = self._handlers[channel]
        draft = Draft(channel, msgspec.json.encode(about), self._clock(), retention)
        return (await self._broker.append([draft]))[0]

    def receive(self, event: Event) -> None:
        """Handle a control event of the log."""
        handler, _ = self._handlers.get(event.channel, (None, None))
        if handler is not None:  # else a kind of a newer version
            try:
                handler(msgspec.json.decode(event.payload), event.id)
            except Exception as error:  # a message that cannot be handled must not stop the follower
                self._background.record_failure("hub", error)

    def read_missed(self, after: EventId, until: EventId) -> None:
        """Read the messages that were missed between two ids."""
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
            except Exception as error:  # unreadable messages must count as missed
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
