"""Delivers followed events to the node so that an exception there loses none.

If the node raises, it is unknown which events of the batch it handled. So the whole batch is reported as a
gap, and the streams read the events from the log. If the report raises as well, it is repeated until it
succeeds, and covers later events too.
"""

import asyncio
from collections.abc import Callable, Sequence

from gateway.core.event import Event, EventId
from gateway.observability.task_supervisor import TaskSupervisor

OnEvents = Callable[[Sequence[Event]], None]
OnGap = Callable[[EventId], None]

GAP_RETRY_SECONDS = 0.2
"""How long after a failed report of a gap it is repeated."""


class Delivery:
    """Calls the functions of `gateway.broker.base.Broker.follow`, on the event loop. No method raises."""

    def __init__(self, background: TaskSupervisor) -> None:
        self._background = background
        self._on_events: OnEvents = lambda events: None
        self._on_gap: OnGap = lambda until: None
        self._unreported_gap: EventId | None = None
        self._retry_timer: asyncio.TimerHandle | None = None

    def set_handlers(self, on_events: OnEvents, on_gap: OnGap) -> None:
        """Deliver to these functions from now on."""
        self._on_events, self._on_gap = on_events, on_gap

    def stop(self) -> None:
        """Deliver nothing any more; harmless when repeated."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._on_events, self._on_gap, self._unreported_gap = lambda events: None, lambda until: None, None

    def deliver(self, events: Sequence[Event]) -> None:
        """Deliver a batch, in the log's order; without events this does nothing."""
        if not events:
            return
        if self._unreported_gap is not None:
            self.report_gap(events[-1].id)
            return
        try:
            self._on_events(events)
        except Exception as error:
            self._background.record_failure("event_delivery", error)
            self.report_gap(events[-1].id)

    def report_gap(self, until: EventId) -> None:
        """Report that events up to an id cannot be delivered."""
        try:
            self._on_gap(until)
            self._unreported_gap = None
        except Exception as error:
            self._background.record_failure("event_delivery", error)
            self._unreported_gap = until
            if self._retry_timer is not None:
                self._retry_timer.cancel()
            self._retry_timer = asyncio.get_running_loop().call_later(GAP_RETRY_SECONDS, self._retry_report)

    def _retry_report(self) -> None:
        if self._unreported_gap is not None:
            self.report_gap(self._unreported_gap)
