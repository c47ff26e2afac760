"""From the id that a client has to the live events: resume, slow clients and floods are one mechanism.

A stream that is in no audience is *behind*: it has a cursor, and `Replay` writes it page after page of
what comes after, from the ring where that reaches back far enough, else from the broker, until the
cursor meets the hub's head. There it joins its audience in the same turn of the loop, so between
the last page and the first live event there is no seam. A client that stops reading pauses this, and
one that reads again resumes it, from the same cursor.

What cannot be had any more is a gap. Up to where the log was when the stream opened, or when this node
was last cut off from it, it is told: that was not the client's doing. After that the client read too
slowly, and the channel's ``slow_client`` says what happens. A channel without history is whole only as
far as this node's ring knows that nothing passed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog

from gateway.broker.base import Broker
from gateway.core.backoff import jittered
from gateway.core.errors import Unavailable
from gateway.core.event import EventId
from gateway.core.sse import gap_block
from gateway.hub.audience import MAX_FRAME, Member
from gateway.hub.encoded_event import Entry
from gateway.hub.history_cache import Reads, View
from gateway.hub.hub import Hub
from gateway.hub.recent_ids import RecentIds
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.hub")

PAGE = 128
"""Events per page."""

NO_POINT = "no_resume_point"
"""The gap of a client that comes back and does not say what it has."""

LARGE = 60 * 1024
"""Bytes of a payload that, in its envelope, some clients' buffers (64 KiB) do not hold."""

RETRY = 1.0
"""Seconds until a stream whose read failed tries again, jittered."""

_PAGE_COST = 8  # a page is as much work for the pump as this many deliveries


class Reader(Member, Protocol):
    """What replay needs of a stream."""

    subscription: Subscription
    began: EventId
    """The head when it opened: of channels without history it gets what came later."""
    is_behind: bool
    """Whether it has a turn coming, or a read under way."""
    told: dict[str, EventId]
    """Up to which id of a channel a gap was told."""

    @property
    def can_take(self) -> bool:
        """Whether it is neither closing nor paused."""

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks now."""

    def begins_with(self, entry: Entry) -> None:
        """Note that the first event that it is sent is one of at least `LARGE` bytes."""

    def end(self, reason: str) -> None:
        """Close at this event boundary."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: at ``after``; else ``last`` events back; else now.

    ``resumes`` is True for a client that comes back (Last-Event-ID), whose id may be forged: an id
    that is no id is ``after`` None.
    """

    after: EventId | None = None
    last: int | None = None
    resumes: bool = False
    is_return: bool = False
    """Whether its client was served moments ago and gave no resume point: what came since is missing."""
    address: str | None = None
    """Whose request it is, where the log must be asked for the last events: addresses take turns."""


NOW = Start()


class Opening(msgspec.Struct, frozen=True):
    """What the first bytes of a stream say."""

    head: EventId
    """The log when this was decided."""
    cursor: EventId
    resume: str
    id: EventId | None
    """The id that ``stream.open`` carries: up to there the client has everything, or was told."""
    gaps: bytes = b""
    told: Mapping[str, EventId] = {}


class Replay:
    """Brings streams from their cursor to the head. Owns the tasks that read for them."""

    def __init__(self, hub: Hub, broker: Broker, metrics: Metrics) -> None:
        self._hub = hub
        self._metrics = metrics
        self._reads = Reads(broker)
        self._recent = RecentIds(broker)
        self._tasks: set[asyncio.Task[None]] = set()
        hub.on_behind = self.catch_up

    def open_at_once(self, subscription: Subscription, start: Start) -> Opening | None:
        """Decide where a stream begins, or return None where `open` must read first. Raises Unavailable."""
        head, after = self._hub.head, start.after
        if head == EventId(0, 0):
            raise Unavailable("the log has not been reached yet")
        if start.last is not None or (after is not None and after > head):
            return None
        if after is None:
            if start.resumes:
                return self._unknown(subscription, head)
            return self._only_gaps(subscription, head, NO_POINT) if start.is_return else self._live(head)
        if self._hub.covers(subscription, after):
            unseen = self._unseen(subscription, after, head)
            return self._opening(subscription, after, head, View((), head, unseen, {}), after)
        view = self._held(subscription, after, head, 1)  # another one of a herd may have asked for it
        return None if view is None else self._read(subscription, after, head, view)

    async def open(self, subscription: Subscription, start: Start) -> Opening:
        """Decide where a stream begins and what it must be told. Raises Unavailable."""
        opening = self.open_at_once(subscription, start)
        if opening is not None:
            return opening
        head = self._hub.head
        if start.last is not None:
            kept = {match.name: match.declared.retention.events for match in subscription.matches}
            found = await self._recent.after(kept, start.last, start.address)
            cursor = head if found is None else min(found, head)
            # Nothing was promised about what lies further back, so what is gone there is not told.
            view = await self._view(subscription, cursor, head)
            if start.is_return:
                gaps = self._gaps(dict.fromkeys(subscription.channels, cursor), {}, NO_POINT, None, cursor)
                return Opening(head, cursor, "gap", None, gaps, view.floors)
            return Opening(head, cursor, "none", cursor, told=view.floors)
        after = start.after
        assert after is not None, "a start without an id is decided at once"
        if after > head:
            if after > await self._reads.latest():
                return self._unknown(subscription, head) if start.resumes else self._live(head)
            return Opening(head, after, "complete", after)
        return self._read(subscription, after, head, await self._view(subscription, after, head))

    def _read(self, subscription: Subscription, after: EventId, head: EventId, view: View) -> Opening:
        cursor = after if view.entries or view.until < head else head
        return self._opening(subscription, after, head, view, cursor)

    @staticmethod
    def _live(head: EventId) -> Opening:
        return Opening(head, head, "none", head)

    def _unknown(self, subscription: Subscription, head: EventId) -> Opening:
        # Nobody knows what the client has. It keeps its id until the last gap is through.
        return self._only_gaps(subscription, head, "unknown_id")

    def _only_gaps(self, subscription: Subscription, head: EventId, reason: str) -> Opening:
        told = dict.fromkeys(subscription.channels, head)
        return Opening(head, head, "gap", None, self._gaps(told, {}, reason, None, head), told)

    def _opening(
        self, subscription: Subscription, after: EventId, head: EventId, view: View, cursor: EventId
    ) -> Opening:
        gaps = _of_channels(subscription, view.floors)
        if not gaps:
            return Opening(head, cursor, "complete", cursor)
        # Without events to follow, the last gap brings the client up to the head.
        blocks = self._gaps(gaps, view.oldest, "expired", after, head if cursor == head else None)
        return Opening(head, cursor, "gap", after, blocks, gaps)

    def catch_up(self, stream: Reader) -> None:
        """Bring a stream to the head. Call it for a new one and whenever one can take more again."""
        if stream.audience is not None or stream.is_behind or not stream.can_take:
            return
        if stream.cursor == self._hub.head:
            self._join(stream)
            return
        stream.is_behind = True
        self._hub.schedule(self._turn, stream)

    async def close(self) -> None:
        """End all reads; harmless when repeated."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reads.close()
        await self._recent.close()

    async def _view(self, subscription: Subscription, after: EventId, until: EventId) -> View:
        """Read the first events of an interval. Raises Unavailable."""
        while (view := self._held(subscription, after, until)) is None:
            await self._reads.load(subscription.stored, after, until)
        return view

    def _held(
        self, subscription: Subscription, after: EventId, until: EventId, limit: int = PAGE
    ) -> View | None:
        view = self._reads.view(subscription.stored, after, until, limit)
        if view is None:
            return None
        unseen = self._unseen(subscription, after, view.until)
        return View(view.entries, view.until, {**view.floors, **unseen}, view.oldest) if unseen else view

    def _unseen(self, subscription: Subscription, after: EventId, until: EventId) -> dict[str, EventId]:
        """Return up to where channels without history may have had events that nobody can have again."""
        return {
            name: last
            for name, declared in subscription.declared.items()
            if not declared.retention.events and (last := self._hub.last(name, until)) > after
        }

    def _join(self, stream: Reader) -> None:
        self._hub.join(stream, stream.subscription)

    def _turn(self, stream: Reader, budget: int) -> tuple[int, bool]:
        try:
            return self._step(stream)
        except Exception:
            log.exception("replay_failed")
            stream.is_behind = False
            stream.end("internal_error")
            return 1, False

    def _step(self, stream: Reader) -> tuple[int, bool]:
        if not stream.can_take:
            stream.is_behind = False
            return 0, False
        head = self._hub.head
        if stream.cursor == head:
            stream.is_behind = False
            self._join(stream)
            return 1, False
        if stream.cursor < head and self._hub.covers(stream.subscription, stream.cursor):
            entries = self._hub.recent(stream.subscription, stream.cursor, PAGE)
            self._write(stream, entries, head if len(entries) < PAGE else entries[-1].id)
            return _PAGE_COST, True
        if stream.cursor < head:
            until = self._until(stream)
            view = self._held(stream.subscription, stream.cursor, until)
            if view is not None:
                self._write_view(stream, view)
                return _PAGE_COST, True
        task = asyncio.create_task(self._fetch(stream), name="replay")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return 1, False

    def _until(self, stream: Reader) -> EventId:
        """Return how far to read: what channels without history sent since then is in the rings alone."""
        began = max(stream.began, self._hub.cut)
        return began if stream.cursor < began else self._hub.head

    async def _fetch(self, stream: Reader) -> None:
        """Get hold of the stream's next page, and give it its next turn."""
        try:
            if stream.cursor > self._hub.head:
                # Ahead of this node's follower: the client was served by another one. It will come.
                await asyncio.sleep(jittered(0.05, 0.5))
            else:
                await self._reads.load(stream.subscription.stored, stream.cursor, self._until(stream))
        except Unavailable as error:
            log.warning("replay_waits", error=error.message)
            await asyncio.sleep(jittered(RETRY, 0.5))
        except Exception:
            log.exception("replay_failed")
            stream.end("internal_error")
        finally:
            stream.is_behind = False
        self.catch_up(stream)

    def _write_view(self, stream: Reader, view: View) -> None:
        subscription, began = stream.subscription, max(stream.began, self._hub.cut)
        zero = EventId(0, 0)
        gaps = _of_channels(subscription, view.floors)
        gaps = {name: floor for name, floor in gaps.items() if floor > stream.told.get(name, zero)}
        reason = "expired" if stream.cursor < began else "slow_client"
        if reason == "slow_client":
            policies = {match.name: match.declared.spec.policy for match in subscription.matches}
            if any(policies[name] == "disconnect" for name in gaps):
                stream.end("slow_client")
                return
        stream.told.update(gaps)
        if gaps:
            id = None if view.entries else view.until
            stream.send(self._gaps(gaps, view.oldest, reason, stream.cursor, id), 0)
        self._write(stream, view.entries, view.until)

    def _write(self, stream: Reader, entries: Sequence[Entry], until: EventId) -> None:
        """Write entries in blocks of at most `MAX_FRAME` bytes, for as long as the stream takes them."""
        subscription = stream.subscription
        if subscription.is_plain and sum([len(entry.event.payload) for entry in entries]) < MAX_FRAME:
            self._send(stream, entries, until)
            return
        began = max(stream.began, self._hub.cut)
        page: list[Entry] = []
        size = 0
        for entry in entries:
            # An event without an id may be one that the client has: its id could not tell.
            if subscription.wants(entry) and (entry.event.kept or entry.id > stream.began):
                # What came before was not missed by being slow: a client that comes back gets all of it.
                if entry.id > began and self._hub.newest.supersedes(entry):
                    self._metrics.conflated.value += 1
                    continue
                page.append(entry)
                size += len(entry.event.payload)
            if size >= MAX_FRAME:
                self._send(stream, page, entry.id)
                page, size = [], 0
                if not stream.can_take:
                    return
        self._send(stream, page, until)

    def _send(self, stream: Reader, page: Sequence[Entry], until: EventId) -> None:
        # The cursor first: writing may pause the stream, and the page counts as written then.
        stream.cursor = until
        if page:
            blocks = stream.subscription.encode(page)
            if len(blocks) >= LARGE and stream.events == 0 and len(page[0].event.payload) >= LARGE:
                stream.begins_with(page[0])
            stream.send(blocks, len(page))
            self._metrics.replayed.inc(len(page))

    def _gaps(
        self,
        gaps: Mapping[str, EventId],
        oldest: Mapping[str, EventId],
        reason: str,
        after: EventId | None,
        id: EventId | None,
    ) -> bytes:
        """Return one ``stream.gap`` per channel; ``id`` is on the last, so that a cut skips none."""
        self._metrics.gaps.labels(reason).inc(len(gaps))
        last = len(gaps) - 1
        return b"".join(
            gap_block(name, reason, after=after, oldest=oldest.get(name), id=id if position == last else None)
            for position, name in enumerate(gaps)
        )


def _of_channels(subscription: Subscription, floors: Mapping[str, EventId]) -> dict[str, EventId]:
    """Return the floors by the stream's channels: what a template lost concerns all of its instances."""
    zero = EventId(0, 0)
    both = {
        match.name: max(floors.get(match.name, zero), floors.get(match.declared.name, zero))
        for match in subscription.matches
    }
    return {name: floor for name, floor in both.items() if floor > zero}
