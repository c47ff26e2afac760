"""Reads of the log that many streams share.

Ten thousand clients that come back at once ask for much the same. What was read of a channel stays on a
*shelf* for a few seconds, as entries whose bytes are encoded once; who asks for a part of it is
served from there. Whoever needs more says so and waits for the next *flight*: one read of the
broker for all channels that were asked for until it started, each from the oldest id that anybody
needs. So the reads grow with the channels and with time, and not with the clients.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from gateway.broker.base import Broker, Page
from gateway.config.catalog import Declared, Form
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.core.history import between, merged
from gateway.hub.encoded_event import Entry

READ = 512
"""Most events of one channel in one read."""

EVENTS = 4096
"""Most events of all channels in one read."""

START_EVENTS = 512
"""The same before anything is known of the size of events."""

READ_BYTES = 8 * 1024 * 1024
"""Payload bytes that one read aims for: those that bring more are followed by reads of fewer events."""

CHANNELS = 500
"""Most channels in one read."""

WANTED = 20_000
"""Channels that may wait for a read."""

FLIGHTS = 8
"""Reads that may be under way at once."""

TIMEOUT = 5.0
"""Seconds that one read may take."""

HELD_SECONDS = 5.0
"""How long what was read is held for others."""

HELD_BYTES = 64 * 1024 * 1024
"""Payload bytes on all shelves together; what is read right now comes on top."""

T = TypeVar("T")


@dataclass(slots=True)
class _Shelf:
    """One channel from ``low`` (exclusive) to ``high``; whole, but for what ``floor`` says is gone."""

    form: Form
    """That of its entries: after a reload streams may want another one."""
    low: EventId
    high: EventId
    floor: EventId
    entries: list[Entry]
    bytes: int
    made: float


@dataclass(slots=True)
class _Want:
    declared: Declared
    after: EventId


@dataclass(frozen=True, slots=True)
class _Flying:
    form: Form
    after: EventId
    until: EventId
    task: asyncio.Task[None]

    def reaches(self, form: Form, after: EventId, until: EventId) -> bool:
        """Tell whether it brings all of an interval."""
        return self.form is form and self.after <= after and self.until >= until


@dataclass(frozen=True, slots=True)
class View:
    """What is held for one subscription: merged ``entries`` that lead up to ``until``."""

    entries: Sequence[Entry]
    until: EventId
    floors: Mapping[str, EventId]
    """Of each channel that lost events after the id asked for: the last that is gone."""
    oldest: Mapping[str, EventId]
    """Of the same channels: the first that is still held, if it is in reach."""


class Reads:
    """See the module's docstring."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._shelves: dict[str, _Shelf] = {}
        self._bytes = 0
        self._wants: dict[str, _Want] = {}
        self._flying: dict[str, _Flying] = {}
        self._until = EventId(0, 0)
        self._next: asyncio.Task[None] | None = None
        self._latest: asyncio.Task[EventId] | None = None
        self._events = START_EVENTS
        self._slots = asyncio.Semaphore(FLIGHTS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    def view(self, topics: Mapping[str, Declared], after: EventId, until: EventId, limit: int) -> View | None:
        """Return the first ``limit`` entries with ``after < id <= until``; None if `load` must come first."""
        if not all(self._has(name, each.form, after, until) for name, each in topics.items()):
            return None
        shelves = {name: self._shelves[name] for name in topics}
        reach = min((until, *(shelf.high for shelf in shelves.values())))
        entries = merged(
            [between(shelf.entries, after, reach, limit + 1) for shelf in shelves.values()], limit + 1
        )
        if len(entries) > limit:
            entries.pop()
            reach = entries[-1].id
        floors = {name: shelf.floor for name, shelf in shelves.items() if shelf.floor > after}
        oldest = {
            name: first[0].id
            for name, floor in floors.items()
            if (first := between(shelves[name].entries, floor, shelves[name].high, 1))
        }
        return View(entries, reach, floors, oldest)

    async def load(self, topics: Mapping[str, Declared], after: EventId, until: EventId) -> None:
        """Get hold of what `view` lacks, or of a part of it. Raises Unavailable. Cancelling is safe."""
        flights: set[asyncio.Task[None]] = set()
        for name, declared in topics.items():
            if self._has(name, declared.form, after, until):
                continue
            flying = self._flying.get(name)
            if flying is not None and flying.reaches(declared.form, after, until):
                flights.add(flying.task)
                continue
            want = self._wants.get(name)
            if self._next is None:
                self._next = self._own(self._fly())
            if want is None and len(self._wants) >= WANTED:
                raise Unavailable("too many streams wait for the log")
            if want is None or want.declared.form is not declared.form:  # who wanted the other one asks again
                want = self._wants[name] = _Want(declared, after)
            want.after = min(want.after, self._further(name, after))
            flights.add(self._next)
        self._until = max(self._until, until)
        for flight in flights:
            await asyncio.shield(flight)

    async def latest(self) -> EventId:
        """Return what `Broker.latest` does. Raises Unavailable. Cancelling is safe."""
        if self._latest is None:
            self._latest = self._own(self._ask_latest())
        return await asyncio.shield(self._latest)

    async def close(self) -> None:
        """End what is under way; harmless when repeated."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _has(self, name: str, form: Form, after: EventId, until: EventId) -> bool:
        """Tell whether a shelf holds the next event after an id, or all there is up to ``until``."""
        shelf = self._shelves.get(name)
        if shelf is None or shelf.form is not form:
            return False
        return shelf.low <= after and (shelf.high >= until or after < shelf.high)

    def _further(self, name: str, after: EventId) -> EventId:
        """Return from where to read for somebody who needs more than a shelf reaches back.

        As far again as it falls short: others will come from further back still, and with every read
        the reach doubles.
        """
        shelf, flying = self._shelves.get(name), self._flying.get(name)
        low = flying.after if flying is not None else shelf.low if shelf is not None else after
        return after if after >= low else EventId(max(0, 2 * after.ms - low.ms - 1), 0)

    async def _fly(self) -> None:
        async with self._slots:
            task, self._next = self._next, None  # from here on, whoever wants more waits for another one
            assert task is not None
            names = list(islice(self._wants, min(CHANNELS, self._events)))
            wants = {name: self._wants.pop(name) for name in names}
            until = self._until
            flying = {
                name: _Flying(want.declared.form, want.after, until, task) for name, want in wants.items()
            }
            self._flying.update(flying)
            try:
                # Few of each where many channels are asked for: a flight must not fill the memory.
                limit = min(READ, self._events // len(wants))
                after = {name: want.after for name, want in wants.items()}
                pages = await _bounded(self._broker.read(after, until, limit))
            finally:
                for name, each in flying.items():
                    if self._flying.get(name) is each:
                        del self._flying[name]
        self._learn(pages)
        now = asyncio.get_running_loop().time()
        for name, page in pages.items():
            self._file(name, wants[name], page, until, now)
        self._shrink(len(pages))

    def _learn(self, pages: Mapping[str, Page]) -> None:
        """Let the next read ask for as many events of this read's kind as `READ_BYTES` hold."""
        events = sum(len(page.events) for page in pages.values())
        size = sum(len(event.payload) for page in pages.values() for event in page.events)
        if size > READ_BYTES:
            self._events = max(1, events * READ_BYTES // size)
        elif 2 * events >= self._events and 2 * size < READ_BYTES:
            self._events = min(EVENTS, 2 * self._events)

    def _file(self, name: str, want: _Want, page: Page, until: EventId, now: float) -> None:
        entries = [Entry(event, want.declared) for event in page.events]
        size = sum(len(event.payload) for event in page.events)
        high = page.events[-1].id if page.more else until
        shelf = self._shelves.pop(name, None)
        if shelf is not None:
            self._bytes -= shelf.bytes
        form = want.declared.form
        goes_on = shelf is not None and shelf.form is form and shelf.high == want.after == page.floor
        if shelf is not None and goes_on and shelf.bytes < HELD_BYTES // 8:
            shelf.entries += entries
            shelf.high = high
            shelf.bytes += size
        else:
            shelf = _Shelf(form, want.after, high, page.floor, entries, size, now)
        self._shelves[name] = shelf
        self._bytes += shelf.bytes

    def _shrink(self, fresh: int) -> None:
        """Keep the limit; the ``fresh`` newest shelves stay, for those who wait for them right now."""
        while self._bytes > HELD_BYTES and len(self._shelves) > fresh:
            self._drop(next(iter(self._shelves)))
        if self._sweeper is None and self._shelves:
            self._sweeper = asyncio.get_running_loop().call_later(HELD_SECONDS / 2, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        made_after = asyncio.get_running_loop().time() - HELD_SECONDS
        for name in [name for name, shelf in self._shelves.items() if shelf.made <= made_after]:
            self._drop(name)
        self._shrink(0)

    def _drop(self, name: str) -> None:
        self._bytes -= self._shelves.pop(name).bytes

    async def _ask_latest(self) -> EventId:
        async with self._slots:
            self._latest = None  # an answer from before a request came might be too old for it
            return await _bounded(self._broker.latest())

    def _own(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name="log read")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited was told; if nobody did, nobody needs to be


async def _bounded(call: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(TIMEOUT):
            return await call
    except TimeoutError:
        raise Unavailable("the log did not answer in time") from None
