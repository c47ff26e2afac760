"""Runs operations on the log's file, in threads that each have a connection of their own."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from gateway.broker.batcher import SHUTTING_DOWN
from gateway.broker.sqlite.event_log import FOLDER_MODE, IncompatibleFile, SqliteEventLog, is_world_readable
from gateway.core.errors import StartupError, Unavailable

log = structlog.get_logger("gateway.broker")

T = TypeVar("T")
Operation = Callable[[SqliteEventLog], T]


class SqliteConnections:
    """Opens a connection per thread, and opens it anew after a failure or when the file was replaced.

    SQLite does not notice that its file was removed or replaced: it writes on into the deleted one. So each
    operation compares the files first. What a former file held is lost, and reported as a gap.
    """

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.is_up = False  # whether the last write or read of the follower succeeded
        self.last_error = ""
        self.is_file_replaced = False  # by another file, since the follower cleared this
        self._path = path
        self._clock = clock
        self._readers = ThreadPoolExecutor(2, "sqlite reader")
        self._thread_local = threading.local()
        self._generation = 0  # a connection of an earlier one is opened anew
        self._open_logs: set[SqliteEventLog] = set()
        self._file_identity: tuple[int, int] | None = None
        self._is_closed = False

    async def open(self) -> int:
        """Open or create the file, and return its head, packed. Raises StartupError."""
        try:
            head = await self._run(SqliteEventLog.read_head)
        except (sqlite3.Error, IncompatibleFile, OSError) as error:
            reason = str(error)
            if not os.access(self._path.parent, os.W_OK):
                reason += f" (the folder {self._path.parent} is read-only, or belongs to another user)"
            raise StartupError(f"the log {self._path} (broker.url) cannot be used: {reason}") from None
        if is_world_readable(self._path):
            note = "every user of this machine can read the events of all channels; chmod 600"
            log.warning("log_file_world_readable", file=str(self._path), note=note)
        self.is_up = True
        return head

    async def close(self) -> None:
        """Wait for the operations under way, and close all connections; harmless when repeated."""
        self._is_closed, self.is_up = True, False
        # The threads first: a connection must not be closed under a statement.
        await asyncio.to_thread(self._readers.shutdown, cancel_futures=True)
        while self._open_logs:
            self._open_logs.pop().close()

    async def read(self, operation: Operation[T]) -> T:
        """Run an operation in a reader's thread. Raises Unavailable. Cancelling is safe."""
        if self._is_closed:
            raise Unavailable(SHUTTING_DOWN)
        try:
            return await self._run(operation)
        except (sqlite3.Error, IncompatibleFile, OSError) as error:
            self.is_up = False
            self.last_error = f"the log cannot be read: {error}"
            raise Unavailable(self.last_error) from None

    async def change(self, operation: Operation[T]) -> T:
        """Run an operation in a reader's thread, in a transaction. Raises Unavailable.

        After a cancellation it may or may not be committed.
        """

        def within(store: SqliteEventLog) -> T:
            with store.transaction():
                return operation(store)

        return await self.read(within)

    async def _run(self, operation: Operation[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._call, operation)

    # In any thread.

    def write(self, operation: Operation[T]) -> T:
        """Run an operation, with a transaction of its own, in the calling thread. Raises what it raises.

        After an exception all threads open the file anew.
        """
        try:
            return self._call(operation)
        except Exception:
            self._generation += 1
            raise

    def _call(self, operation: Operation[T]) -> T:
        try:
            return operation(self._thread_log())
        except Exception:
            self.close_thread_log()
            raise

    def _thread_log(self) -> SqliteEventLog:
        store: SqliteEventLog | None = getattr(self._thread_local, "store", None)
        if store is not None and self._thread_local.generation == self._generation and store.is_file_current:
            return store
        self.close_thread_log()
        self._thread_local.generation = self._generation
        self._path.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        store = self._thread_local.store = SqliteEventLog(self._path, self._clock)
        self._open_logs.add(store)
        if self._file_identity not in (None, store.file_identity):
            self.is_file_replaced = True
            note = "what the former file held is lost, and reported as a gap"
            log.error("event_log_replaced", file=str(self._path), note=note)
        self._file_identity = store.file_identity
        return store

    def close_thread_log(self) -> None:
        """Close the calling thread's connection; harmless when repeated."""
        store: SqliteEventLog | None = getattr(self._thread_local, "store", None)
        if store is not None:
            self._thread_local.store = None
            self._open_logs.discard(store)
            with suppress(sqlite3.Error):
                store.close()
