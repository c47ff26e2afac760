"""Writes appends to the log's file, many per transaction, and deletes old events.

Appends queue up for the writer's thread, which commits those that wait in one transaction: they share
an fsync, and a busy node writes fewer, larger transactions by itself. After a commit the writer wakes the
other processes on the file (`ProcessWakeups`).
"""

import asyncio
import queue
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from gateway.broker.base import AppendBatch, AppendResult
from gateway.broker.batcher import MAX_WAITING_BYTES, Batcher, Pending
from gateway.broker.sqlite.connections import SqliteConnections
from gateway.broker.sqlite.event_log import SqliteEventLog
from gateway.broker.sqlite.follower import SqliteFollower
from gateway.broker.sqlite.wakeups import ProcessWakeups
from gateway.core.event import AppendedIds, Event, pack_id
from gateway.observability.task_supervisor import TaskSupervisor

log = structlog.get_logger("gateway.broker")

_PendingAppend = Pending[AppendBatch, AppendedIds]

GROUP_COMMIT_APPENDS = 256
"""Appends that share a transaction at most."""

SWEEP_SECONDS = 1.0
"""How often old events are deleted."""

SWEEP_CHANNELS = 200
"""Channels that one sweep visits."""

STOP_SECONDS = 5.0
"""How long a stop waits for the thread to write the appends that are queued."""


class SqliteWriter:
    """One thread that commits `appends` and deletes old events. ``clock`` returns unix milliseconds."""

    def __init__(
        self,
        connections: SqliteConnections,
        follower: SqliteFollower,
        clock: Callable[[], int],
        background: TaskSupervisor,
    ) -> None:
        self._connections = connections
        self._follower = follower
        self._clock = clock
        self._background = background
        self._wakeups: ProcessWakeups | None = None
        self._registered_log: SqliteEventLog | None = None  # the connection that registered `_wakeups`
        self._thread = background.create_thread("sqlite_writer", self._run, is_vital=True)
        self._loop: asyncio.AbstractEventLoop
        self._queued: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.appends: Batcher[AppendBatch, AppendedIds] = Batcher(
            "appends",
            lambda batch: (1, batch.payload_bytes()),
            batch_units=GROUP_COMMIT_APPENDS,
            batch_bytes=MAX_WAITING_BYTES,
            # The appends of one iteration of the loop share a batch.
            wake=lambda: asyncio.get_running_loop().call_soon(self._queued.put, None),
        )

    def start(self, wakeups: ProcessWakeups | None) -> None:
        """Begin to write; ``wakeups`` wakes other processes. Needs a running loop."""
        self._wakeups, self._loop = wakeups, asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Write the queued appends for up to `STOP_SECONDS`, then reject the rest. Harmless if repeated."""
        self.appends.close()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        self.appends.reject_pending()

    # On the event loop, after a commit.

    def _on_committed(
        self,
        batch: Sequence[_PendingAppend],
        results: Sequence[AppendResult],
        events: list[Event],
        head_before: int,
    ) -> None:
        self._connections.is_up = True
        self._follower.deliver_own_events(events, head_before)
        self.appends.settle(batch, results)

    def _on_write_failed(self, batch: Sequence[_PendingAppend], error: Exception) -> None:
        if self._connections.is_up:
            log.error("event_log_unwritable", error=str(error))
        self._connections.is_up = False
        self._connections.last_error = f"the log cannot be written: {error}"
        self.appends.reject(batch, self._connections.last_error)

    # In the writer's thread.

    def _run(self) -> None:
        swept_at, position, has_more = time.monotonic(), 0, False
        while True:
            is_closed = self.appends.is_closed
            batch = self.appends.take_batch()
            if not batch:
                if is_closed:
                    break
                with suppress(queue.Empty):
                    self._queued.get(timeout=SWEEP_SECONDS)
                batch = self.appends.take_batch()
            if batch:
                self._commit(batch)
            if has_more or time.monotonic() - swept_at >= SWEEP_SECONDS:
                position, has_more = self._sweep(position)
                swept_at = time.monotonic()
        if self._registered_log is not None and self._wakeups is not None:
            with suppress(sqlite3.Error), self._registered_log.transaction():  # otherwise it expires
                self._wakeups.unregister(self._registered_log.db)
        self._connections.close_thread_log()

    def _commit(self, batch: Sequence[_PendingAppend]) -> None:
        appends, last_known_id = [pending.request for pending in batch], pack_id(self._follower.head)
        other_processes: Sequence[str] = ()

        def append(store: SqliteEventLog) -> tuple[list[AppendResult], list[Event], int]:
            nonlocal other_processes
            with self._transaction(store) as other_processes:
                return store.append(appends, last_known_id)

        try:
            results, events, head_before = self._connections.write(append)
        except Exception as error:
            self._call_on_loop(self._on_write_failed, batch, error)
            return
        self._call_on_loop(self._on_committed, batch, results, events, head_before)
        if events and self._wakeups is not None:
            self._wakeups.wake(other_processes)

    def _call_on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: no caller waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _sweep(self, position: int) -> tuple[int, bool]:
        def sweep(store: SqliteEventLog) -> tuple[int, bool]:
            with self._transaction(store):
                return store.sweep(self._clock(), position, SWEEP_CHANNELS)

        try:
            return self._connections.write(sweep)
        except Exception as error:
            self._background.record_failure("sqlite_sweep", error)
            return 0, False

    @contextmanager
    def _transaction(self, store: SqliteEventLog) -> Iterator[Sequence[str]]:
        """Begin a transaction that renews this process's registration; yields the names of the others."""
        with store.transaction():
            names: Sequence[str] = ()
            if self._wakeups is not None:
                self._wakeups.register(store.db, is_new_file=store is not self._registered_log)
                names = self._wakeups.other_processes(store.db)
            yield names
        self._registered_log = store
