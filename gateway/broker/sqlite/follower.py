"""Follows the log's file: delivers this process's commits directly, and reads what other processes wrote.

Other processes send a datagram after a commit. A lost one delays delivery by at most `POLL_SECONDS`, after
which the follower reads anyway.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog

from gateway.broker.delivery import Delivery
from gateway.broker.sqlite.connections import SqliteConnections
from gateway.broker.sqlite.event_log import MIN_RETENTION_MS
from gateway.core.errors import Unavailable
from gateway.core.event import Event, EventId, pack_id, unpack_id

log = structlog.get_logger("gateway.broker")

POLL_SECONDS = 0.25
"""How often the file is read without a wake-up."""

MAX_PAUSE_SECONDS = 0.8 * MIN_RETENTION_MS / 1000
"""After a longer pause between two reads, events may have been deleted unread: that is a gap."""

READ_EVENTS = 1000
"""Events per read."""


class SqliteFollower:
    """Delivers events in the order of ids; `run` is a supervised task that never returns."""

    def __init__(self, connections: SqliteConnections, delivery: Delivery) -> None:
        self.head = EventId(0, 0)  # of the last event that was delivered, or reported as lost
        self.wakeup = asyncio.Event()  # set when another process may have written
        self._connections = connections
        self._delivery = delivery
        self._read_at = 0.0
        self._is_reading = False

    def start_after(self, head: EventId) -> None:
        """Follow the events after ``head``. Call it before `run`."""
        self.head, self._read_at = head, time.monotonic()

    async def run(self) -> None:
        """Read and deliver until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self.wakeup.wait()
            self.wakeup.clear()
            self._is_reading = True
            try:
                await self._deliver_new_events()
                self._connections.is_up = True
            except Unavailable as error:
                log.warning("event_log_unreadable", error=error.message)
                await asyncio.sleep(POLL_SECONDS)
            finally:
                self._is_reading = False

    def deliver_own_events(self, events: Sequence[Event], head_before: int) -> None:
        """Deliver what this process committed, unless another process wrote before it: then read the file."""
        is_busy = self._is_reading or self._connections.is_file_replaced
        if head_before == pack_id(self.head) and not is_busy:
            self._deliver(events)
        elif events:
            self.wakeup.set()

    async def _deliver_new_events(self) -> None:
        while True:
            after = pack_id(self.head)
            events, start, head = await self._connections.read(
                lambda store, after=after: store.read_all_channels(after, READ_EVENTS)  # type: ignore[misc]
            )
            is_late = time.monotonic() - self._read_at > MAX_PAUSE_SECONDS
            self._read_at = time.monotonic()
            if is_late and head > after:
                self._skip_to(head)
                return
            if self._connections.is_file_replaced or start > after:
                # The events in between were in a file that is gone, or are missing in a restored one.
                self._connections.is_file_replaced = False
                self._skip_to(max(start, after))
                continue
            self._deliver(events)
            if len(events) < READ_EVENTS:
                return

    def _skip_to(self, packed_id: int) -> None:
        head = unpack_id(packed_id)
        log.warning("follower_fell_behind", after=str(self.head), until=str(head))
        self.head = head
        self._delivery.report_gap(head)

    def _deliver(self, events: Sequence[Event]) -> None:
        if events:
            self.head = events[-1].id
            self._delivery.deliver(events)
