"""Writes appends to the log's file, many per transaction, and deletes old events.

Appends queue up for the writer's thread, which commits those that wait in one transaction: they share
an fsync, and a busy node writes fewer, larger transactions by itself. After a commit the writer wakes the
other processes on the file (`ProcessWakeups`).
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from gateway.broker.base import MAX_WAITING_APPEND_BYTES, MAX_WAITING_APPENDS, AppendBatch, AppendResult
from gateway.broker.batcher import Batcher, BatchLimits
from gateway.broker.sqlite.connections import SqliteConnections
from gateway.broker.sqlite.event_log import IncompatibleFile, SqliteEventLog
from gateway.broker.sqlite.follower import SqliteFollower
from gateway.broker.sqlite.wakeups import ProcessWakeups
from gateway.core.errors import Unavailable
from gateway.core.event import AppendedIds, Event, pack_id
from gateway.observability.task_supervisor import TaskSupervisor

log = structlog.get_logger("gateway.broker")

GROUP_COMMIT_APPENDS = 256
"""Appends that share a transaction at most."""

SWEEP_SECONDS = 1.0
"""How often old events are deleted."""

SWEEP_CHANNELS = 200
"""Channels that one sweep visits."""

STOP_SECONDS = 5.0
"""How long a stop waits for appends that are being written, and for the last transaction."""


class SqliteWriter:
    """Runs the tasks that write: one commits `appends`, one deletes old events. ``clock``: unix ms."""

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
        self._tasks: list[asyncio.Task[None]] = []
        self.appends: Batcher[AppendBatch, AppendedIds] = Batcher(
            self._commit,
            BatchLimits(
                MAX_WAITING_APPENDS, MAX_WAITING_APPEND_BYTES, GROUP_COMMIT_APPENDS, MAX_WAITING_APPEND_BYTES
            ),
            noun="appends",
            weigh=lambda batch: (1, batch.payload_bytes()),
            on_failure=lambda error: background.record_failure("sqlite_writer", error),
        )

    def start(self, wakeups: ProcessWakeups | None) -> None:
        """Begin to write; ``wakeups`` wakes other processes. Needs a running loop."""
        self._wakeups = wakeups
        self._tasks = [
            self._background.start_task("sqlite_writer", self.appends.run, is_vital=True),
            self._background.start_task("sqlite_sweep", self._run_sweeps),
        ]

    async def stop(self) -> None:
        """Write the waiting appends for up to `STOP_SECONDS`, then reject the rest. Harmless if repeated."""
        self.appends.close()
        for task in self._tasks[1:]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.appends.reject_pending()
        if self._registered_log is not None:
            self._registered_log = None
            with suppress(sqlite3.Error, OSError, IncompatibleFile):  # the registration expires
                async with asyncio.timeout(STOP_SECONDS):
                    await self._connections.write(self._unregister)

    async def _commit(self, batches: Sequence[AppendBatch]) -> Sequence[AppendResult]:
        last_known_id = pack_id(self._follower.head)
        try:
            results, events, head_before = await self._connections.write(
                lambda store: self._append_and_wake(store, batches, last_known_id)
            )
        except Exception as error:
            if self._connections.is_up:
                log.error("event_log_unwritable", error=str(error))
            self._connections.is_up = False
            self._connections.last_error = f"the log cannot be written: {error}"
            raise Unavailable(self._connections.last_error) from None
        self._connections.is_up = True
        self._follower.deliver_own_events(events, head_before)
        return results

    async def _run_sweeps(self) -> None:
        position, has_more = 0, False
        while True:
            if not has_more:
                await asyncio.sleep(SWEEP_SECONDS)
            position, has_more = await self._connections.write(
                lambda store, start=position: self._sweep(store, start)  # type: ignore[misc]
            )

    # In the writer's thread.

    def _append_and_wake(
        self, store: SqliteEventLog, batches: Sequence[AppendBatch], last_known_id: int
    ) -> tuple[list[AppendResult], list[Event], int]:
        with self._transaction(store) as other_processes:
            results, events, head_before = store.append(batches, last_known_id)
        if events and self._wakeups is not None:
            self._wakeups.wake(other_processes)
        return results, events, head_before

    def _sweep(self, store: SqliteEventLog, position: int) -> tuple[int, bool]:
        with self._transaction(store):
            return store.sweep(self._clock(), position, SWEEP_CHANNELS)

    def _unregister(self, store: SqliteEventLog) -> None:
        if self._wakeups is not None:
            with store.transaction():
                self._wakeups.unregister(store.db)

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
