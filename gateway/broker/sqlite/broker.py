"""``sqlite:///path``: one log file for all processes of a host; an append is on disk before it returns.

A writer thread commits the appends that wait in one transaction (`SqliteWriter`), a pool of threads reads
(`SqliteConnections`), and a follower delivers events (`SqliteFollower`). Ids are assigned inside the
transaction, under SQLite's write lock, so they are one order over all processes.

A failure of the file (full, read-only, locked, corrupt) rejects the appends of that moment with Unavailable.
The next ones open the file anew, so the log is back as soon as the cause is gone. If the file was removed or
replaced, the file at its path is used instead, or created with its folder.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import structlog

from gateway.broker.base import AppendBatch, Broker, HistoryPage, HistorySpan, SpanIds
from gateway.broker.sqlite.connections import SqliteConnections
from gateway.broker.sqlite.follower import POLL_SECONDS, SqliteFollower
from gateway.broker.sqlite.shared_store import SqliteSharedStore, boot_id, seconds_since_boot
from gateway.broker.sqlite.wakeups import ProcessWakeups
from gateway.broker.sqlite.writer import SqliteWriter
from gateway.core.event import AppendedIds, Draft, EventId, FencingToken, SourceOffset, pack_id, unpack_id
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.broker")


class SqliteBroker(Broker):
    """A `Broker` in a file. ``clock`` returns unix milliseconds."""

    type = "sqlite"

    def __init__(
        self, path: Path, *, clock: Callable[[], int], background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        super().__init__(background)
        self._clock = clock
        self._background = background
        self._connections = SqliteConnections(path, clock)
        self._follower = SqliteFollower(self._connections, self._delivery)
        self._writer = SqliteWriter(self._connections, self._follower, clock, background)
        self.shared_store = SqliteSharedStore(self._connections, clock)
        self._lease_owner = token_hex(8)
        self._wakeups: ProcessWakeups | None = None
        self._follower_task: asyncio.Task[None] | None = None

    @property
    def head(self) -> EventId:
        return self._follower.head

    @property
    def is_up(self) -> bool:
        return self._connections.is_up

    @property
    def last_error(self) -> str:
        return self._connections.last_error

    async def start(self) -> None:
        self._follower.start_after(unpack_id(await self._connections.open()))
        try:
            self._wakeups = ProcessWakeups(asyncio.get_running_loop(), self._follower.wakeup.set)
        except OSError as error:
            note = f"other processes on the file see an event up to {POLL_SECONDS:g} s late"
            log.warning("sqlite_wakeups_unavailable", error=str(error), note=note)
        self._writer.start(self._wakeups)
        self._follower_task = self._background.start_task(
            "sqlite_follower", self._follower.run, is_vital=True
        )

    async def close(self) -> None:
        await self._writer.stop()
        if self._follower_task is not None:
            self._follower_task.cancel()
            await asyncio.gather(self._follower_task, return_exceptions=True)
        self._delivery.stop()
        if self._wakeups is not None:
            self._wakeups.close()
        await self._connections.close()

    def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> Coroutine[Any, Any, AppendedIds]:
        return self._writer.appends.submit(AppendBatch(drafts, offset, fence))

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        first, last, now = {name: pack_id(id) for name, id in after.items()}, pack_id(until), self._clock()
        return await self._connections.read(lambda store: store.read(first, last, limit, now))

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        now = self._clock()
        return await self._connections.read(lambda store: store.read_recent_ids(spans, now))

    async def read_log_head(self) -> EventId:
        return unpack_id(await self._connections.read(lambda store: store.read_head()))

    async def read_offset(self, source: str) -> str | None:
        return await self._connections.read(lambda store: store.read_offset(source))

    async def list_partitions(self, source: str) -> list[str]:
        return await self._connections.read(lambda store: store.list_partitions(source))

    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        # Not the wall clock, which may be set while a lease runs.
        owner, now, boot = self._lease_owner, seconds_since_boot(), boot_id()
        return await self._connections.change(
            lambda store: store.acquire_lease(name, owner, boot, now, seconds)
        )

    async def release_lease(self, fence: FencingToken) -> None:
        await self._connections.change(lambda store: store.release_lease(fence))
