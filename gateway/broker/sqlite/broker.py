"""``sqlite:///path``: one file for all processes of a host; an append is on disk before it returns.

How it works. Appends queue up for one writer thread, which takes whatever waits into one transaction:
many appends share one fsync, and a busy node writes fewer, larger transactions by itself. Ids are given
inside the transaction, under SQLite's write lock, so they are one order over all processes.

After a commit the writer nudges the other processes with a datagram; what they deliver they read from the
file. A lost nudge costs at most `POLL_SECONDS`, after which a follower looks by itself.
This process delivers what it just wrote without reading it, if nobody else wrote in between.

Trouble with the file (full, read-only, locked, broken) fails the appends of that moment with Unavailable.
The connection is opened anew for the next ones, so the log is back as soon as the cause is gone. Where the
file was removed or replaced, which SQLite itself does not notice, the one that is at its path now is used, or
made with its folder; what the former one held is lost, and reported as a gap.
"""

import asyncio
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.broker.base import AppendBatch, Broker, HistoryPage, HistorySpan, OnEvents, OnGap, SpanIds
from gateway.broker.delivery import Delivery
from gateway.broker.sqlite.event_log import (
    FOLDER_MODE,
    MIN_RETENTION_MS,
    IncompatibleFile,
    SqliteEventLog,
    is_world_readable,
)
from gateway.broker.sqlite.shared_store import SqliteSharedStore, boot_id, seconds_since_boot
from gateway.broker.sqlite.wakeups import ProcessWakeups
from gateway.core.errors import (
    GatewayError,
    IdempotencyKeyReused,
    StaleFencingToken,
    StartupError,
    Unavailable,
)
from gateway.core.event import (
    AppendedIds,
    Draft,
    Event,
    EventId,
    FencingToken,
    SourceOffset,
    pack_id,
    unpack_id,
)
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.broker")

MAX_WAITING_APPENDS = 10_000
"""Appends that may wait for the writer before more are refused."""

GROUP_COMMIT_APPENDS = 256
"""Appends that share a transaction at the most."""

POLL_SECONDS = 0.25
"""How long a lost nudge can go unnoticed."""

SWEEP_SECONDS = 1.0
"""How often the writer deletes what grew too old."""

SWEEP_CHANNELS = 200
"""Channels that one sweep looks at."""

_MAX_FOLLOWER_PAUSE_SECONDS = 0.8 * MIN_RETENTION_MS / 1000
_FOLLOW_READ_EVENTS = 1000
_WRITER_STOP_SECONDS = 5.0

T = TypeVar("T")


@dataclass(slots=True)
class _PendingAppend:
    batch: AppendBatch
    result: asyncio.Future[AppendedIds]


_AppendResult = AppendedIds | StaleFencingToken | IdempotencyKeyReused


class SqliteBroker(Broker):
    """See the module's docstring, and `gateway.broker.base` for the contract."""

    type = "sqlite"

    def __init__(
        self, path: Path, *, clock: Callable[[], int], background: TaskSupervisor = UNCOUNTED_SUPERVISOR
    ) -> None:
        self._path = path
        self._clock = clock
        self._background = background
        self._delivery = Delivery(background)
        self._head = EventId(0, 0)
        self._is_up = False
        self._followed_at = 0.0
        self._lease_owner = secrets.token_hex(8)
        self._waiting_count = 0
        self._unqueued_appends: list[_PendingAppend] = []
        self._queue: queue.SimpleQueue[list[_PendingAppend] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self.shared_store = SqliteSharedStore(
            lambda work: self._run_in_reader(lambda store: work(store.db)),
            lambda work: self._run_in_transaction(lambda store: work(store.db)),
            clock,
        )
        self._readers = ThreadPoolExecutor(2, "sqlite reader")
        self._thread_local = threading.local()
        self._log_generation = 0
        self._is_closed = False
        self._open_logs: set[SqliteEventLog] = set()
        self._file_identity: tuple[int, int] | None = None  # of the file that is in use
        self._is_file_replaced = False  # by another file, since the follower looked
        self._wakeups: ProcessWakeups | None = None
        self._registered_log: SqliteEventLog | None = (
            None  # where the file has the name of this process's nudges
        )
        self._follower: asyncio.Task[None] | None = None
        self._follower_wakeup = asyncio.Event()
        self._is_follower_reading = False
        self._loop: asyncio.AbstractEventLoop

    @property
    def head(self) -> EventId:
        return self._head

    @property
    def is_up(self) -> bool:
        return self._is_up

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            head = await self._loop.run_in_executor(self._readers, lambda: self._thread_log().read_head())
        except (sqlite3.Error, IncompatibleFile, OSError) as error:
            why = str(error)
            if not os.access(self._path.parent, os.W_OK):
                why += f" (the folder {self._path.parent} is read-only, or not this user's)"
            raise StartupError(f"the log {self._path} (broker.url) cannot be used: {why}") from None
        if is_world_readable(self._path):
            log.warning(
                "log_file_world_readable",
                file=str(self._path),
                note="every user of this machine can read the events of all channels; chmod 600",
            )
        self._head = unpack_id(head)
        self._followed_at = time.monotonic()
        self._is_up = True
        try:
            self._wakeups = ProcessWakeups(self._loop, self._follower_wakeup.set)
        except OSError as error:
            note = f"other processes on the file see an event up to {POLL_SECONDS:g} s late"
            log.warning("sqlite_wakeups_unavailable", error=str(error), note=note)
        self._writer = self._background.create_thread("sqlite_writer", self._run_writer, is_vital=True)
        self._writer.start()
        self._follower = self._background.start_task("sqlite_follower", self._run_follower, is_vital=True)

    async def close(self) -> None:
        self._is_closed = True
        self._queue_appends()
        if self._writer is not None and self._writer.is_alive():
            await self._loop.run_in_executor(None, self._stop_writer)
            self._fail_queued_appends()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        self._delivery.stop()
        if self._wakeups is not None:
            self._wakeups.close()
        self._is_up = False
        # The threads first: a connection must not be closed under a statement.
        await asyncio.to_thread(self._readers.shutdown, cancel_futures=True)
        while self._open_logs:
            self._open_logs.pop().close()

    def follow(self, on_events: OnEvents, on_gap: OnGap) -> None:
        self._delivery.set_handlers(on_events, on_gap)

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        if self._is_closed:
            raise Unavailable("the gateway is shutting down")
        if self._waiting_count >= MAX_WAITING_APPENDS:
            raise Unavailable(f"{MAX_WAITING_APPENDS} appends wait for the log already", retry_after=2)
        request = _PendingAppend(AppendBatch(drafts, offset, fence), self._loop.create_future())
        self._unqueued_appends.append(request)
        if len(self._unqueued_appends) == 1:
            # What else is appended in this turn of the loop goes to the writer with it.
            self._loop.call_soon(self._queue_appends)
        elif len(self._unqueued_appends) == GROUP_COMMIT_APPENDS:
            self._queue_appends()
        self._waiting_count += 1
        try:
            return await request.result
        finally:
            self._waiting_count -= 1

    def _queue_appends(self) -> None:
        if self._unqueued_appends:
            self._queue.put(self._unqueued_appends)
            self._unqueued_appends = []

    async def read(
        self, after: Mapping[str, EventId], until: EventId, limit: int
    ) -> Mapping[str, HistoryPage]:
        first, last, now = {name: pack_id(id) for name, id in after.items()}, pack_id(until), self._clock()
        return await self._run_in_reader(lambda store: store.read(first, last, limit, now))

    async def read_recent_ids(self, spans: Sequence[HistorySpan]) -> Sequence[SpanIds]:
        now = self._clock()
        return await self._run_in_reader(lambda store: store.read_recent_ids(spans, now))

    async def read_log_head(self) -> EventId:
        return unpack_id(await self._run_in_reader(lambda store: store.read_head()))

    async def read_offset(self, source: str) -> str | None:
        return await self._run_in_reader(lambda store: store.read_offset(source))

    async def list_partitions(self, source: str) -> list[str]:
        return await self._run_in_reader(lambda store: store.list_partitions(source))

    async def acquire_lease(self, name: str, seconds: float) -> FencingToken | None:
        # Not the wall clock, which may be set while a lease runs.
        now, boot = seconds_since_boot(), boot_id()
        return await self._run_in_transaction(
            lambda store: store.acquire_lease(name, self._lease_owner, boot, now, seconds)
        )

    async def release_lease(self, fence: FencingToken) -> None:
        await self._run_in_transaction(lambda store: store.release_lease(fence))

    # Reading: a small pool of threads, each with a connection of its own.

    async def _run_in_reader(self, operation: Callable[[SqliteEventLog], T]) -> T:
        if self._is_closed:
            raise Unavailable("the gateway is shutting down")
        try:
            return await self._loop.run_in_executor(self._readers, self._call_with_log, operation)
        except (sqlite3.Error, IncompatibleFile, OSError) as error:
            self._is_up = False
            self.last_error = f"the log cannot be read: {error}"
            raise Unavailable(self.last_error) from None

    async def _run_in_transaction(self, operation: Callable[[SqliteEventLog], T]) -> T:
        def within(store: SqliteEventLog) -> T:
            with store.transaction():
                return operation(store)

        return await self._run_in_reader(within)

    def _call_with_log(self, operation: Callable[[SqliteEventLog], T]) -> T:
        try:
            return operation(self._thread_log())
        except sqlite3.Error:
            self._close_thread_log()
            raise

    def _thread_log(self) -> SqliteEventLog:
        store: SqliteEventLog | None = getattr(self._thread_local, "store", None)
        if store is not None and (
            self._thread_local.generation != self._log_generation or not store.is_file_current
        ):
            self._close_thread_log()  # there was trouble since, or it is another file by now
            store = None
        if store is None:
            self._thread_local.generation = self._log_generation
            self._path.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            store = self._thread_local.store = SqliteEventLog(self._path, self._clock)
            self._open_logs.add(store)
            if self._file_identity not in (None, store.file_identity):
                self._is_file_replaced = True
                note = "what the former file held is lost, and reported as a gap"
                log.error("event_log_replaced", file=str(self._path), note=note)
            self._file_identity = store.file_identity
        return store

    def _close_thread_log(self) -> None:
        store: SqliteEventLog | None = getattr(self._thread_local, "store", None)
        if store is not None:
            self._thread_local.store = None
            self._open_logs.discard(store)
            with suppress(sqlite3.Error):
                store.close()

    # Following.

    async def _run_follower(self) -> None:
        """Deliver what other processes wrote: woken by a nudge, else looking now and then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._follower_wakeup.wait()
            self._follower_wakeup.clear()
            self._is_follower_reading = True
            try:
                await self._deliver_new_events()
                self._is_up = True
            except Unavailable as error:
                log.warning("event_log_unreadable", error=error.message)
                await asyncio.sleep(POLL_SECONDS)
            finally:
                self._is_follower_reading = False

    async def _deliver_new_events(self) -> None:
        while True:
            after = pack_id(self._head)
            events, start, head = await self._run_in_reader(
                lambda store, after=after: store.read_all_channels(after, _FOLLOW_READ_EVENTS)  # type: ignore[misc]
            )
            late = time.monotonic() - self._followed_at > _MAX_FOLLOWER_PAUSE_SECONDS
            self._followed_at = time.monotonic()
            if late and head > after:
                self._skip_to(unpack_id(head))
                return
            if self._is_file_replaced or start > after:
                # Whatever lies between was in a file that is gone, or not in the one that was put back.
                self._is_file_replaced = False
                self._skip_to(unpack_id(max(start, after)))
                continue
            self._deliver(events)
            if len(events) < _FOLLOW_READ_EVENTS:
                return

    def _skip_to(self, head: EventId) -> None:
        """Go on from an id up to which events may be deleted, or are lost with a file."""
        log.warning("follower_fell_behind", after=str(self._head), until=str(head))
        self._head = head
        self._delivery.report_gap(head)

    def _deliver(self, events: Sequence[Event]) -> None:
        if events:
            self._head = events[-1].id
            self._delivery.deliver(events)

    def _on_committed(
        self,
        requests: Sequence[_PendingAppend],
        results: Sequence[_AppendResult],
        events: list[Event],
        head_before: int,
    ) -> None:
        """Runs on the loop after a commit: deliver, then answer."""
        self._is_up = True
        if (
            events
            and head_before == pack_id(self._head)
            and not (self._is_follower_reading or self._is_file_replaced)
        ):
            self._deliver(events)
        elif events:
            self._follower_wakeup.set()  # others wrote in between, or are being read just now
        for request, answer in zip(requests, results, strict=True):
            if request.result.done():
                continue
            if isinstance(answer, GatewayError):
                request.result.set_exception(answer)
            else:
                request.result.set_result(answer)

    def _on_write_failed(self, requests: Sequence[_PendingAppend], error: Exception) -> None:
        if self._is_up:
            log.error("event_log_unwritable", error=str(error))
        self._is_up = False
        self.last_error = f"the log cannot be written: {error}"
        for request in requests:
            if not request.result.done():
                request.result.set_exception(Unavailable(self.last_error))

    def _fail_queued_appends(self) -> None:
        """Answer the appends that the writer has left."""
        with suppress(queue.Empty):
            while True:
                for request in self._queue.get_nowait() or ():
                    if not request.result.done():
                        request.result.set_exception(Unavailable("the gateway is shutting down"))

    # Writing: everything below runs in the writer thread.

    def _run_writer(self) -> None:
        swept, position, has_more = time.monotonic(), 0, False
        while True:
            requests = self._take_group()
            if requests is None:
                break
            if requests:
                self._commit(requests)
            if has_more or time.monotonic() - swept >= SWEEP_SECONDS:
                position, has_more = self._sweep(position)
                swept = time.monotonic()
        self._unregister_wakeups()
        self._close_thread_log()

    def _take_group(self) -> list[_PendingAppend] | None:
        """Return what waits, about `GROUP_COMMIT_APPENDS`; empty when it is time to sweep; None at the end."""
        try:
            taken = self._queue.get(timeout=SWEEP_SECONDS)
        except queue.Empty:
            return []
        if taken is None:
            return None
        requests = list(taken)
        with suppress(queue.Empty):
            while len(requests) < GROUP_COMMIT_APPENDS:
                more = self._queue.get_nowait()
                if more is None:
                    self._queue.put(None)  # the last group first
                    break
                requests += more
        return requests

    def _commit(self, requests: list[_PendingAppend]) -> None:
        others: Sequence[str] = ()
        try:
            store = self._thread_log()
            with store.transaction():
                answers, events, before = store.append(
                    [request.batch for request in requests], pack_id(self._head)
                )
                others = self._register_wakeups(store)
            self._registered_log = store
        except Exception as error:
            self._log_generation += 1
            self._close_thread_log()
            self._call_on_loop(self._on_write_failed, requests, error)
            return
        self._call_on_loop(self._on_committed, requests, answers, events, before)
        if events and self._wakeups is not None:
            self._wakeups.wake(others)

    def _sweep(self, position: int) -> tuple[int, bool]:
        try:
            store = self._thread_log()
            with store.transaction():
                self._register_wakeups(store)
                swept = store.sweep(self._clock(), position, SWEEP_CHANNELS)
            self._registered_log = store
            return swept
        except Exception as error:
            self._background.record_failure("sqlite_sweep", error)
            self._close_thread_log()
            return 0, False

    def _register_wakeups(self, event_log: SqliteEventLog) -> Sequence[str]:
        """Let the file have this process's name for nudges, and return those of the others."""
        if self._wakeups is None:
            return ()
        self._wakeups.register(event_log.db, is_new_file=event_log is not self._registered_log)
        return self._wakeups.other_processes(event_log.db)

    def _unregister_wakeups(self) -> None:
        store: SqliteEventLog | None = getattr(self._thread_local, "store", None)
        if store is not None and self._wakeups is not None:
            with suppress(sqlite3.Error), store.transaction():
                self._wakeups.unregister(store.db)

    def _call_on_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for the answer
            self._loop.call_soon_threadsafe(function, *arguments)

    def _stop_writer(self) -> None:
        assert self._writer is not None
        self._queue.put(None)
        self._writer.join(_WRITER_STOP_SECONDS)
