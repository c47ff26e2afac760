"""Finds where a stream with ``last=N`` begins: the id after which lie the last N events of its channels.

It needs ids only, so no event is read. Of each requested channel, a *tail* is held: the ids of its newest
events. All requests for a channel are served from its tail, whatever their N. Before each answer a read
brings the tail up to date, and makes it longer where it is too short.

One read is under way at a time, and after each the log rests for as long as the read took: a flood takes half
of the log's time at the most, and nothing of what resuming streams use (`history_cache`). The channels of
different addresses take turns. A request that cannot be served within `DEADLINE` fails with Unavailable, and
one whose client has left is dropped.
"""

import asyncio
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from gateway.broker.base import Broker, Recent, Span
from gateway.core.errors import Unavailable
from gateway.core.event import EventId, pack, unpack

log = structlog.get_logger("gateway.hub")

STEP = 16
"""Least ids of each channel that are read first; where that is not enough, twice as many, and so on."""

MAX_STEP = 1000
"""Most ids of each channel that are read first."""

CHANNELS = 200
"""Channels in one read."""

SHARE = 50
"""Channels of one address in one read, where others wait too."""

WAITING = 20_000
"""Channels that may wait for a read."""

WAITING_OF_ONE = 2000
"""Channels that the requests of one address may wait for."""

DEADLINE = 3.0
"""Seconds after which a request fails."""

TAILS = 10_000
"""Channels whose tails are held."""

TAIL_IDS = 500_000
"""Ids in all tails together: 8 bytes each."""

_START = EventId(0, 0)
_CLOSING = "the gateway is shutting down"


class _Tail:
    """The ids of a channel's newest events, in order."""

    __slots__ = ("floor", "ids", "is_whole", "read")

    def __init__(self) -> None:
        self.ids = array("q")
        self.floor = 0
        self.is_whole = False
        """Whether the log has no older ones."""
        self.read = 0
        """The number of the last read that brought it up to date."""

    def update(self, recent: Recent, kept: int) -> None:
        """Take its last id and what is newer; the channel keeps at most ``kept`` events."""
        newer = array("q", reversed(recent.ids))
        self.floor = max(self.floor, recent.floor)
        if recent.is_cut or not self.ids or not newer or newer[0] != self.ids[-1]:
            # Nothing joins it to what was known: too much came, or the log lost or dropped the last one.
            self.ids = newer
            self.is_whole = not recent.is_cut
        else:
            self.ids.extend(newer[1:])
            if len(self.ids) > 2 * kept:
                self.ids, self.is_whole = self.ids[-kept:], False

    def extend(self, span: Span, recent: Recent) -> None:
        """Take what is older than its first id."""
        if span.before is not None and self.ids and pack(span.before) == self.ids[0]:
            self.ids = array("q", reversed(recent.ids)) + self.ids
            self.is_whole = not recent.is_cut

    def has(self, count: int) -> bool:
        """Tell whether it holds the newest ``count`` ids, or all of events that are kept."""
        return self.is_whole or len(self.ids) >= count or (bool(self.ids) and self.ids[0] <= self.floor)

    def position(self, count: int) -> int:
        """Return the position of the oldest id among the newest ``count`` whose event is kept."""
        return max(0, len(self.ids) - count, bisect_right(self.ids, self.floor))


@dataclass(slots=True, eq=False)
class _Want:
    """A channel that requests wait for."""

    depth: int
    kept: int
    waiters: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)
    error: str | None = None


class RecentIds:
    """See the module's docstring. Everything runs on the event loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tails: OrderedDict[str, _Tail] = OrderedDict()
        self._ids = 0
        self._wants: dict[str, _Want] = {}
        self._turns: OrderedDict[Hashable, dict[str, None]] = OrderedDict()
        self._reads = 0
        self._reader: asyncio.Task[None] | None = None

    async def after(self, kept: Mapping[str, int], count: int, address: Hashable = None) -> EventId | None:
        """Return the id after which lie exactly the last ``count`` events of some channels.

        ``kept`` gives how many events each channel keeps at the most; requests of different addresses take
        turns. Where there are fewer events, the id lies before all of them; None where there is none. Raises
        Unavailable. Cancelling drops the request.
        """
        limits = {name: min(count, most) for name, most in kept.items() if min(count, most) > 0}
        # Twice its share of each: where a channel has most of the events, it is read on.
        depth = STEP + 2 * count // max(1, len(limits))
        depths = {name: min(limit, depth, MAX_STEP) for name, limit in limits.items()}
        since = self._reads
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    lacking = [name for name, depth in depths.items() if not self._has(name, depth, since)]
                    if lacking:
                        await self._wait({name: (depths[name], kept[name]) for name in lacking}, address)
                        continue
                    first, short = self._count_back(limits, count)
                    if not short:
                        return None if first is None else unpack(first - 1)
                    for name in short:
                        depths[name] = min(2 * depths[name], limits[name])
        except TimeoutError:
            raise Unavailable(f"the log did not name its last events within {DEADLINE:g} s") from None

    async def close(self) -> None:
        """End the read that is under way; harmless when repeated."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def _has(self, name: str, depth: int, since: int) -> bool:
        tail = self._tails.get(name)
        return tail is not None and tail.read > since and tail.has(depth)

    def _count_back(self, limits: Mapping[str, int], count: int) -> tuple[int | None, list[str]]:
        """Return the first id of the last ``count``, and the channels whose tails are too short to know."""
        tails = {name: self._tails[name] for name in limits}
        starts = {name: tail.position(limits[name]) for name, tail in tails.items()}
        first = _nth_newest([(tail.ids, starts[name]) for name, tail in tails.items()], count)
        short = [
            name
            for name, tail in tails.items()
            if not tail.has(limits[name]) and (first is None or tail.ids[starts[name]] > first)
        ]
        if first is None:  # fewer than that
            found = [tail.ids[starts[name]] for name, tail in tails.items() if starts[name] < len(tail.ids)]
            first = min(found, default=None)
        return first, short

    async def _wait(self, wanted: Mapping[str, tuple[int, int]], address: Hashable) -> None:
        """Wait for a read of these channels, each so deep. Raises Unavailable."""
        queue = self._turns.setdefault(address, {})
        new = sum(name not in self._wants for name in wanted)
        if len(self._wants) + new > WAITING or (address is not None and len(queue) + new > WAITING_OF_ONE):
            raise Unavailable("too many requests for last= wait for the log")
        wants = []
        for name, (depth, kept) in wanted.items():
            want = self._wants.get(name)
            if want is None:
                want = self._wants[name] = _Want(depth, kept)
            want.depth, want.kept = max(want.depth, depth), max(want.kept, kept)
            want.waiters += 1
            queue[name] = None
            wants.append((name, want))
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_on(), name="last ids")
        try:
            for _, want in wants:
                await want.done.wait()
                if want.error is not None:
                    raise Unavailable(want.error)
        finally:
            for name, want in wants:
                want.waiters -= 1
                if not want.waiters and self._wants.get(name) is want:
                    del self._wants[name]
                    queue.pop(name, None)

    async def _read_on(self) -> None:
        """Read for as long as somebody waits."""
        loop = asyncio.get_running_loop()
        try:
            while wants := self._next():
                began, error = loop.time(), None
                try:
                    await self._read(wants)
                except asyncio.CancelledError:
                    error = _CLOSING
                    raise
                except Unavailable as unavailable:
                    error = unavailable.message
                except Exception:
                    log.exception("last_ids_failed")
                    error = "the last events cannot be found; the gateway's logs say why"
                finally:
                    _settle(wants, error)
                await asyncio.sleep(loop.time() - began)
        finally:
            self._reader = None
            self._turns.clear()
            _settle(self._wants, _CLOSING)

    def _next(self) -> dict[str, _Want]:
        """Take the channels of the next read, a share of each address in turn."""
        taken: dict[str, _Want] = {}
        while self._turns and len(taken) < CHANNELS:
            address, queue = self._turns.popitem(last=False)
            share = min(SHARE, CHANNELS - len(taken)) + len(taken)
            while queue and len(taken) < share:
                name = next(iter(queue))
                del queue[name]
                want = self._wants.pop(name, None)  # another address's turn may have been first
                if want is not None:
                    taken[name] = want
            if queue:
                self._turns[address] = queue
        return taken

    async def _read(self, wants: Mapping[str, _Want]) -> None:
        """Bring the tails of channels up to date, and deepen those that are too short. Raises Unavailable."""
        self._reads += 1
        number = self._reads
        newer, older = [], []
        for name, want in wants.items():
            tail = self._tails.get(name)
            if tail is None or not tail.ids:
                newer.append(Span(name, _START, None, want.depth))
                continue
            newer.append(Span(name, unpack(tail.ids[-1]), None, want.depth + 1))
            if not tail.has(want.depth):
                older.append(Span(name, _START, unpack(tail.ids[0]), want.depth - len(tail.ids)))
        spans = newer + older
        try:
            async with asyncio.timeout(DEADLINE):
                answers = await self._broker.recent(spans)
        except TimeoutError:
            raise Unavailable("the log did not answer in time") from None
        for position, (span, recent) in enumerate(zip(spans, answers, strict=True)):
            if recent.is_cut and not recent.ids:
                continue  # the answer was full before
            name = span.channel
            tail = self._tails.pop(name, None) or _Tail()
            self._ids -= len(tail.ids)
            if position < len(newer):
                tail.update(recent, wants[name].kept)
                tail.read = number
            else:
                tail.extend(span, recent)
            self._tails[name] = tail
            self._ids += len(tail.ids)
        # Those just read are the last that go: requests are about to look at them.
        while len(self._tails) > TAILS or (self._ids > TAIL_IDS and len(self._tails) > 1):
            self._ids -= len(self._tails.popitem(last=False)[1].ids)


def _settle(wants: Mapping[str, _Want], error: str | None) -> None:
    for want in wants.values():
        if not want.done.is_set():
            want.error = error
            want.done.set()


def _nth_newest(tails: "Sequence[tuple[array[int], int]]", count: int) -> int | None:
    """Return the ``count``-th newest of ids that are sorted in several arrays, each from a position on.

    None where there are fewer. The value is searched for, so the cost does not grow with ``count``.
    """
    filled = [(ids, start) for ids, start in tails if start < len(ids)]
    if not filled or sum(len(ids) - start for ids, start in filled) < count:
        return None
    low, high = min(ids[start] for ids, start in filled), max(ids[-1] for ids, _ in filled)
    while low < high:  # the greatest number that at least ``count`` ids are not below
        middle = (low + high + 1) // 2
        if sum(len(ids) - max(start, bisect_left(ids, middle)) for ids, start in filled) >= count:
            low = middle
        else:
            high = middle - 1
    return low
