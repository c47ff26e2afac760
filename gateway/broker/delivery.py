"""The last step of a broker: what it followed is handed to the node, and an exception there loses nothing.

Where the node raises, nobody knows which events of the batch it has taken. So the whole batch is reported as
lost (`Broker`'s ``lost``): the streams read from the log what they need of it. Where even that raises, it is
tried again until it succeeds, and later events are reported with it.
"""

import asyncio
from collections.abc import Sequence

from gateway.broker.base import Deliver, Lost
from gateway.core.event import Event, EventId
from gateway.observability.background import Background

RETRY_SECONDS = 0.2
"""How long after a report of lost events failed it is tried again."""


class Delivery:
    """The functions that `Broker.follow` was given. All methods run on the event loop; none raises."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._deliver: Deliver = lambda events: None
        self._lost: Lost = lambda until: None
        self._unreported: EventId | None = None
        self._retry: asyncio.TimerHandle | None = None

    def follow(self, deliver: Deliver, lost: Lost) -> None:
        """Hand events to these from now on."""
        self._deliver, self._lost = deliver, lost

    def stop(self) -> None:
        """Hand over nothing any more; harmless when repeated."""
        if self._retry is not None:
            self._retry.cancel()
        self._deliver, self._lost, self._unreported = lambda events: None, lambda until: None, None

    def deliver(self, events: Sequence[Event]) -> None:
        """Hand over a batch, in the log's order."""
        if self._unreported is not None:
            self.skip(events[-1].id)
            return
        try:
            self._deliver(events)
        except Exception as error:
            self._background.failed("delivery", error)
            self.skip(events[-1].id)

    def skip(self, until: EventId) -> None:
        """Report that events up to an id cannot be delivered."""
        try:
            self._lost(until)
            self._unreported = None
        except Exception as error:
            self._background.failed("delivery", error)
            self._unreported = until
            if self._retry is not None:
                self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._report)

    def _report(self) -> None:
        if self._unreported is not None:
            self.skip(self._unreported)
