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

from gateway.broker.base import Batch, Broker, Deliver, Lost, Page, Recent, Span
from gateway.broker.delivery import Delivery
from gateway.broker.sqlite.shared_store import SqliteBoard, boot_id, boot_time
from gateway.broker.sqlite.store import FOLDER_MODE, LIVE_MS, ForeignFile, Store, is_open_to_all
from gateway.broker.sqlite.wakeups import Nudges
from gateway.core.errors import Fenced, GatewayError, KeyReused, StartupError, Unavailable
from gateway.core.event import Appended, Cursor, Draft, Event, EventId, Fence, pack, unpack
from gateway.observability.background import UNCOUNTED, Background

log = structlog.get_logger("gateway.broker")

WAITING = 10_000
"""Appends that may wait for the writer before more are refused."""

GROUP = 256
"""Appends that share a transaction at the most."""

POLL_SECONDS = 0.25
"""How long a lost nudge can go unnoticed."""

SWEEP_SECONDS = 1.0
"""How often the writer deletes what grew too old."""

SWEEP_CHANNELS = 200
"""Channels that one sweep looks at."""

_LATE_SECONDS = 0.8 * LIVE_MS / 1000
_PAGE = 1000
_CLOSE_SECONDS = 5.0

T = TypeVar("T")


@dataclass(slots=True)
class _Append:
    batch: Batch
    answer: asyncio.Future[Appended]


_Answer = Appended | Fenced | KeyReused


class SqliteBroker(Broker):
    """See the module's docstring, and `gateway.broker.base` for the contract."""

    type = "sqlite"

    def __init__(self, path: Path, *, clock: Callable[[], int], background: Background = UNCOUNTED) -> None:
        self._path = path
        self._clock = clock
        self._background = background
        self._delivery = Delivery(background)
        self._head = EventId(0, 0)
        self._is_up = False
        self._followed = 0.0
        self._owner = secrets.token_hex(8)
        self._waiting = 0
        self._gathered: list[_Append] = []
        self._queue: queue.SimpleQueue[list[_Append] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self.board = SqliteBoard(
            lambda work: self._ask(lambda store: work(store.db)),
            lambda work: self._change(lambda store: work(store.db)),
            clock,
        )
        self._readers = ThreadPoolExecutor(2, "sqlite reader")
        self._local = threading.local()
        self._generation = 0
        self._is_closed = False
        self._stores: set[Store] = set()
        self._identity: tuple[int, int] | None = None  # of the file that is in use
        self._is_replaced = False  # by another file, since the follower looked
        self._nudges: Nudges | None = None
        self._named: Store | None = None  # where the file has the name of this process's nudges
        self._follower: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._is_reading = False
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
            head = await self._loop.run_in_executor(self._readers, lambda: self._store().head())
        except (sqlite3.Error, ForeignFile, OSError) as error:
            why = str(error)
            if not os.access(self._path.parent, os.W_OK):
                why += f" (the folder {self._path.parent} is read-only, or not this user's)"
            raise StartupError(f"the log {self._path} (broker.url) cannot be used: {why}") from None
        if is_open_to_all(self._path):
            log.warning(
                "log_readable_by_all",
                file=str(self._path),
                note="every user of this machine can read the events of all channels; chmod 600",
            )
        self._head = unpack(head)
        self._followed = time.monotonic()
        self._is_up = True
        try:
            self._nudges = Nudges(self._loop, self._news.set)
        except OSError as error:
            note = f"other processes on the file see an event up to {POLL_SECONDS:g} s late"
            log.warning("log_without_nudges", error=str(error), note=note)
        self._writer = self._background.thread("sqlite_writer", self._write, is_vital=True)
        self._writer.start()
        self._follower = self._background.start("sqlite_follower", self._follow, is_vital=True)

    async def close(self) -> None:
        self._is_closed = True
        self._pass_on()
        if self._writer is not None and self._writer.is_alive():
            await self._loop.run_in_executor(None, self._stop_writer)
            self._refuse_waiting()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        self._delivery.stop()
        if self._nudges is not None:
            self._nudges.close()
        self._is_up = False
        # The threads first: a connection must not be closed under a statement.
        await asyncio.to_thread(self._readers.shutdown, cancel_futures=True)
        while self._stores:
            self._stores.pop().close()

    def follow(self, deliver: Deliver, lost: Lost) -> None:
        self._delivery.follow(deliver, lost)

    async def append(
        self, drafts: Sequence[Draft], cursor: Cursor | None = None, fence: Fence | None = None
    ) -> Appended:
        if self._is_closed:
            raise Unavailable("the gateway is shutting down")
        if self._waiting >= WAITING:
            raise Unavailable(f"{WAITING} appends wait for the log already", retry_after=2)
        request = _Append(Batch(drafts, cursor, fence), self._loop.create_future())
        self._gathered.append(request)
        if len(self._gathered) == 1:
            # What else is appended in this turn of the loop goes to the writer with it.
            self._loop.call_soon(self._pass_on)
        elif len(self._gathered) == GROUP:
            self._pass_on()
        self._waiting += 1
        try:
            return await request.answer
        finally:
            self._waiting -= 1

    def _pass_on(self) -> None:
        if self._gathered:
            self._queue.put(self._gathered)
            self._gathered = []

    async def read(self, after: Mapping[str, EventId], until: EventId, limit: int) -> Mapping[str, Page]:
        first, last, now = {name: pack(id) for name, id in after.items()}, pack(until), self._clock()
        return await self._ask(lambda store: store.read(first, last, limit, now))

    async def recent(self, spans: Sequence[Span]) -> Sequence[Recent]:
        now = self._clock()
        return await self._ask(lambda store: store.recent(spans, now))

    async def latest(self) -> EventId:
        return unpack(await self._ask(lambda store: store.head()))

    async def cursor(self, source: str) -> str | None:
        return await self._ask(lambda store: store.cursor(source))

    async def parts(self, source: str) -> list[str]:
        return await self._ask(lambda store: store.parts(source))

    async def lease(self, name: str, seconds: float) -> Fence | None:
        # Not the wall clock, which may be set while a lease runs.
        now, boot = boot_time(), boot_id()
        return await self._change(lambda store: store.lease(name, self._owner, boot, now, seconds))

    async def release(self, fence: Fence) -> None:
        await self._change(lambda store: store.release(fence))

    # Reading: a small pool of threads, each with a connection of its own.

    async def _ask(self, question: Callable[[Store], T]) -> T:
        if self._is_closed:
            raise Unavailable("the gateway is shutting down")
        try:
            return await self._loop.run_in_executor(self._readers, self._answer, question)
        except (sqlite3.Error, ForeignFile, OSError) as error:
            self._is_up = False
            self.trouble = f"the log cannot be read: {error}"
            raise Unavailable(self.trouble) from None

    async def _change(self, change: Callable[[Store], T]) -> T:
        def within(store: Store) -> T:
            with store.transaction():
                return change(store)

        return await self._ask(within)

    def _answer(self, question: Callable[[Store], T]) -> T:
        try:
            return question(self._store())
        except sqlite3.Error:
            self._drop_store()
            raise

    def _store(self) -> Store:
        store: Store | None = getattr(self._local, "store", None)
        if store is not None and (self._local.generation != self._generation or not store.is_current):
            self._drop_store()  # there was trouble since, or it is another file by now
            store = None
        if store is None:
            self._local.generation = self._generation
            self._path.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            store = self._local.store = Store(self._path, self._clock)
            self._stores.add(store)
            if self._identity not in (None, store.identity):
                self._is_replaced = True
                note = "what the former file held is lost, and reported as a gap"
                log.error("log_replaced", file=str(self._path), note=note)
            self._identity = store.identity
        return store

    def _drop_store(self) -> None:
        store: Store | None = getattr(self._local, "store", None)
        if store is not None:
            self._local.store = None
            self._stores.discard(store)
            with suppress(sqlite3.Error):
                store.close()

    # Following.

    async def _follow(self) -> None:
        """Deliver what other processes wrote: woken by a nudge, else looking now and then."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._news.wait()
            self._news.clear()
            self._is_reading = True
            try:
                await self._read_on()
                self._is_up = True
            except Unavailable as error:
                log.warning("log_unreadable", error=error.message)
                await asyncio.sleep(POLL_SECONDS)
            finally:
                self._is_reading = False

    async def _read_on(self) -> None:
        while True:
            after = pack(self._head)
            events, start, head = await self._ask(lambda store, after=after: store.since(after, _PAGE))  # type: ignore[misc]
            late = time.monotonic() - self._followed > _LATE_SECONDS
            self._followed = time.monotonic()
            if late and head > after:
                self._skip(unpack(head))
                return
            if self._is_replaced or start > after:
                # Whatever lies between was in a file that is gone, or not in the one that was put back.
                self._is_replaced = False
                self._skip(unpack(max(start, after)))
                continue
            self._hand_on(events)
            if len(events) < _PAGE:
                return

    def _skip(self, head: EventId) -> None:
        """Go on from an id up to which events may be deleted, or are lost with a file."""
        log.warning("follower_fell_behind", after=str(self._head), until=str(head))
        self._head = head
        self._delivery.skip(head)

    def _hand_on(self, events: Sequence[Event]) -> None:
        if events:
            self._head = events[-1].id
            self._delivery.deliver(events)

    def _committed(
        self, requests: Sequence[_Append], answers: Sequence[_Answer], events: list[Event], before: int
    ) -> None:
        """Runs on the loop after a commit: deliver, then answer."""
        self._is_up = True
        if events and before == pack(self._head) and not (self._is_reading or self._is_replaced):
            self._hand_on(events)
        elif events:
            self._news.set()  # others wrote in between, or are being read just now
        for request, answer in zip(requests, answers, strict=True):
            if request.answer.done():
                continue
            if isinstance(answer, GatewayError):
                request.answer.set_exception(answer)
            else:
                request.answer.set_result(answer)

    def _failed(self, requests: Sequence[_Append], error: Exception) -> None:
        if self._is_up:
            log.error("log_unwritable", error=str(error))
        self._is_up = False
        self.trouble = f"the log cannot be written: {error}"
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(Unavailable(self.trouble))

    def _refuse_waiting(self) -> None:
        """Answer the appends that the writer has left."""
        with suppress(queue.Empty):
            while True:
                for request in self._queue.get_nowait() or ():
                    if not request.answer.done():
                        request.answer.set_exception(Unavailable("the gateway is shutting down"))

    # Writing: everything below runs in the writer thread.

    def _write(self) -> None:
        swept, position, has_more = time.monotonic(), 0, False
        while True:
            requests = self._take()
            if requests is None:
                break
            if requests:
                self._commit(requests)
            if has_more or time.monotonic() - swept >= SWEEP_SECONDS:
                position, has_more = self._sweep(position)
                swept = time.monotonic()
        self._leave()
        self._drop_store()

    def _take(self) -> list[_Append] | None:
        """Return what waits, about `GROUP`; empty when it is time to sweep; None at the end."""
        try:
            taken = self._queue.get(timeout=SWEEP_SECONDS)
        except queue.Empty:
            return []
        if taken is None:
            return None
        requests = list(taken)
        with suppress(queue.Empty):
            while len(requests) < GROUP:
                more = self._queue.get_nowait()
                if more is None:
                    self._queue.put(None)  # the last group first
                    break
                requests += more
        return requests

    def _commit(self, requests: list[_Append]) -> None:
        others: Sequence[str] = ()
        try:
            store = self._store()
            with store.transaction():
                answers, events, before = store.append(
                    [request.batch for request in requests], pack(self._head)
                )
                others = self._join(store)
            self._named = store
        except Exception as error:
            self._generation += 1
            self._drop_store()
            self._call(self._failed, requests, error)
            return
        self._call(self._committed, requests, answers, events, before)
        if events and self._nudges is not None:
            self._nudges.send(others)

    def _sweep(self, position: int) -> tuple[int, bool]:
        try:
            store = self._store()
            with store.transaction():
                self._join(store)
                swept = store.sweep(self._clock(), position, SWEEP_CHANNELS)
            self._named = store
            return swept
        except Exception as error:
            self._background.failed("sqlite_sweep", error)
            self._drop_store()
            return 0, False

    def _join(self, store: Store) -> Sequence[str]:
        """Let the file have this process's name for nudges, and return those of the others."""
        if self._nudges is None:
            return ()
        self._nudges.join(store.db, is_new=store is not self._named)
        return self._nudges.others(store.db)

    def _leave(self) -> None:
        store: Store | None = getattr(self._local, "store", None)
        if store is not None and self._nudges is not None:
            with suppress(sqlite3.Error), store.transaction():
                self._nudges.leave(store.db)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for the answer
            self._loop.call_soon_threadsafe(function, *arguments)

    def _stop_writer(self) -> None:
        assert self._writer is not None
        self._queue.put(None)
        self._writer.join(_CLOSE_SECONDS)
