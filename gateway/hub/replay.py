"""Replay: brings lagging streams from their cursor to the live events, on resume and after slowness.

A stream that is in no audience is *lagging*: it has a cursor, and `Replay` writes page after page of later
events, from the ring if that reaches back far enough, else from the broker, until the cursor meets the hub's
head. There the stream joins its audience in the same turn of the loop, so no event is lost or doubled in
between. A client that stops reading pauses the replay; when it reads again, replay continues from the same
cursor.

Events that can no longer be replayed are a gap. Up to the head at which the stream opened, or this node was
last cut off from the log, the gap is reported: it was not the client's fault. After that the client read too
slowly, and the channel's ``slow_client`` decides. A channel without history is complete only as far as this
node's ring knows that it had no events.
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
from gateway.core.sse import encode_gap_frame
from gateway.hub.audience import MAX_FRAME_BYTES, Member
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.history_cache import HistoryCache, HistoryView
from gateway.hub.hub import Hub
from gateway.hub.recent_ids import RecentIds
from gateway.hub.subscription import Subscription
from gateway.observability.eager import enter_task
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.hub")

PAGE_EVENTS = 128
"""Events per page."""

NO_RESUME_POINT = "no_resume_point"
"""The reason of the gap of a client that reconnects without a resume point."""

LARGE_EVENT_BYTES = 60 * 1024
"""Bytes of a payload that, in its envelope, may exceed some clients' buffers (64 KiB)."""

RETRY_SECONDS = 1.0
"""Seconds after which a failed read is repeated, jittered."""

_PAGE_COST_WRITES = 8  # the work of a page for the pump, in deliveries; bench row: herd


class ReplayStream(Member, Protocol):
    """A stream as replay needs it."""

    head_at_open: EventId
    """The head when it opened: of channels without history it gets later events only."""
    is_replaying: bool
    """Whether it waits for a turn in the pump, or for a read."""
    reported_gaps: dict[str, EventId]
    """Up to which id of a channel a gap was reported."""

    def on_large_first_event(self, entry: EncodedEvent) -> None:
        """Record that the first event that it is sent has at least `LARGE_EVENT_BYTES` bytes."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a stream begins: at ``after``; else ``last`` events back; else now.

    ``resumes`` is True for a client that comes back (Last-Event-ID), whose id may be forged: an id
    that is no id is ``after`` None.
    """

    after: EventId | None = None
    last: int | None = None
    has_last_event_id: bool = False
    is_reconnect_without_id: bool = False
    """Whether its client was served moments ago and gave no resume point: what came since is missing."""
    address: str | None = None
    """The client's address, if the last events must be read from the log: addresses take turns."""


FROM_NOW = ResumePoint()


class StreamStart(msgspec.Struct, frozen=True):
    """The position at which a stream starts, and its first blocks."""

    head: EventId
    """The hub's head at that moment."""
    cursor: EventId
    resume: str
    id: EventId | None
    """The id of ``stream.open``: up to there the client has every event, or gets a gap."""
    gap_blocks: bytes = b""
    reported_gaps: Mapping[str, EventId] = {}


class Replay:
    """Brings streams from their cursor to the head. Owns the tasks that read for them."""

    def __init__(self, hub: Hub, broker: Broker, metrics: Metrics) -> None:
        self._hub = hub
        self._metrics = metrics
        self._history_cache = HistoryCache(broker)
        self._recent_ids = RecentIds(broker)
        self._fetch_tasks: set[asyncio.Task[None]] = set()
        hub.on_lagging = self.catch_up

    async def resolve_start(self, subscription: Subscription, start: ResumePoint) -> StreamStart:
        """Decide where a stream begins, and which gaps its client must learn of. Raises Unavailable.

        Waits only if that takes events from the log which neither a ring nor the history cache has.
        """
        head, after = self._hub.head, start.after
        if head == EventId(0, 0):
            raise Unavailable("the log has not been reached yet")
        if start.last is not None:
            await enter_task()
            return await self._start_at_last_events(subscription, start, start.last, head)
        if after is None:
            if start.has_last_event_id:
                return self._start_with_unknown_id(subscription, head)
            return (
                self._start_with_gaps(subscription, head, NO_RESUME_POINT)
                if start.is_reconnect_without_id
                else self._start_live(head)
            )
        if after > head:
            await enter_task()
            return await self._start_ahead(subscription, start, after, head)
        if self._hub.ring_covers(subscription, after):
            unseen = self._lost_without_history(subscription, after, head)
            return self._start_after(subscription, after, head, HistoryView((), head, unseen, {}), after)
        view = self._cached_view(subscription, after, head, 1)  # another one of a herd may have asked for it
        if view is None:
            await enter_task()
            view = await self._load_view(subscription, after, head)
        return self._start_from_view(subscription, after, head, view)

    async def _start_at_last_events(
        self, subscription: Subscription, start: ResumePoint, count: int, head: EventId
    ) -> StreamStart:
        """Begin so many events back (``last=``)."""
        kept = {match.name: match.declared.retention.max_events for match in subscription.matches}
        found = await self._recent_ids.find_start(kept, count, start.address)
        cursor = head if found is None else min(found, head)
        # Events further back were not requested: their loss is no gap.
        view = await self._load_view(subscription, cursor, head)
        if start.is_reconnect_without_id:
            gaps = self._encode_gaps(
                dict.fromkeys(subscription.channels, cursor), {}, NO_RESUME_POINT, None, cursor
            )
            return StreamStart(head, cursor, "gap", None, gaps, view.floors)
        return StreamStart(head, cursor, "none", cursor, reported_gaps=view.floors)

    async def _start_ahead(
        self, subscription: Subscription, start: ResumePoint, after: EventId, head: EventId
    ) -> StreamStart:
        """Begin after an id that this node has not reached: another node's event, or a forged id."""
        if after <= await self._history_cache.latest():
            return StreamStart(head, after, "complete", after)
        if start.has_last_event_id:
            return self._start_with_unknown_id(subscription, head)
        return self._start_live(head)

    def _start_from_view(
        self, subscription: Subscription, after: EventId, head: EventId, view: HistoryView
    ) -> StreamStart:
        cursor = after if view.events or view.until < head else head
        return self._start_after(subscription, after, head, view, cursor)

    @staticmethod
    def _start_live(head: EventId) -> StreamStart:
        return StreamStart(head, head, "none", head)

    def _start_with_unknown_id(self, subscription: Subscription, head: EventId) -> StreamStart:
        # Nobody knows what the client has. It keeps its id until the last gap is through.
        return self._start_with_gaps(subscription, head, "unknown_id")

    def _start_with_gaps(self, subscription: Subscription, head: EventId, reason: str) -> StreamStart:
        told = dict.fromkeys(subscription.channels, head)
        return StreamStart(head, head, "gap", None, self._encode_gaps(told, {}, reason, None, head), told)

    def _start_after(
        self, subscription: Subscription, after: EventId, head: EventId, view: HistoryView, cursor: EventId
    ) -> StreamStart:
        gaps = _floors_by_channel(subscription, view.floors)
        if not gaps:
            return StreamStart(head, cursor, "complete", cursor)
        # Without events to follow, the last gap brings the client up to the head.
        blocks = self._encode_gaps(gaps, view.oldest, "expired", after, head if cursor == head else None)
        return StreamStart(head, cursor, "gap", after, blocks, gaps)

    def catch_up(self, stream: ReplayStream) -> None:
        """Bring a stream to the head. Call it for a new one, and whenever one is writable again."""
        if stream.audience is not None or stream.is_replaying or not stream.is_writable:
            return
        if stream.cursor == self._hub.head:
            self._join_audience(stream)
            return
        stream.is_replaying = True
        self._hub.schedule(self._run_slice, stream)

    async def close(self) -> None:
        """Cancel all reads; harmless when repeated."""
        tasks = list(self._fetch_tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._history_cache.close()
        await self._recent_ids.close()

    async def _load_view(self, subscription: Subscription, after: EventId, until: EventId) -> HistoryView:
        """Read the first events of an interval. Raises Unavailable."""
        while (view := self._cached_view(subscription, after, until)) is None:
            await self._history_cache.load(subscription.with_history, after, until)
        return view

    def _cached_view(
        self, subscription: Subscription, after: EventId, until: EventId, limit: int = PAGE_EVENTS
    ) -> HistoryView | None:
        view = self._history_cache.try_cached(subscription.with_history, after, until, limit)
        if view is None:
            return None
        unseen = self._lost_without_history(subscription, after, view.until)
        return (
            HistoryView(view.events, view.until, {**view.floors, **unseen}, view.oldest) if unseen else view
        )

    def _lost_without_history(
        self, subscription: Subscription, after: EventId, until: EventId
    ) -> dict[str, EventId]:
        """Return the last events of channels without history, which can no longer be replayed."""
        return {
            name: last
            for name, declared in subscription.followed.items()
            if not declared.retention.max_events and (last := self._hub.last_event_id(name, until)) > after
        }

    def _join_audience(self, stream: ReplayStream) -> None:
        self._hub.join(stream, stream.subscription)

    def _run_slice(self, stream: ReplayStream, budget: int) -> tuple[int, bool]:
        try:
            return self._replay_page(stream)
        except Exception:
            log.exception("replay_failed")
            stream.is_replaying = False
            stream.close("internal_error")
            return 1, False

    def _replay_page(self, stream: ReplayStream) -> tuple[int, bool]:
        if not stream.is_writable:
            stream.is_replaying = False
            return 0, False
        head = self._hub.head
        if stream.cursor == head:
            stream.is_replaying = False
            self._join_audience(stream)
            return 1, False
        if stream.cursor < head and self._hub.ring_covers(stream.subscription, stream.cursor):
            entries = self._hub.read_ring(stream.subscription, stream.cursor, PAGE_EVENTS)
            self._write_events(stream, entries, head if len(entries) < PAGE_EVENTS else entries[-1].id)
            return _PAGE_COST_WRITES, True
        if stream.cursor < head:
            until = self._read_until(stream)
            view = self._cached_view(stream.subscription, stream.cursor, until)
            if view is not None:
                self._write_view(stream, view)
                return _PAGE_COST_WRITES, True
        task = asyncio.create_task(self._fetch_page(stream), name="replay")
        self._fetch_tasks.add(task)
        task.add_done_callback(self._fetch_tasks.discard)
        return 1, False

    def _read_until(self, stream: ReplayStream) -> EventId:
        """Return how far to read from history: later events of channels without one are only in the rings."""
        began = max(stream.head_at_open, self._hub.last_gap_end)
        return began if stream.cursor < began else self._hub.head

    async def _fetch_page(self, stream: ReplayStream) -> None:
        """Load a stream's next page, and continue its replay."""
        try:
            if stream.cursor > self._hub.head:
                # Ahead of this node's follower: the client was on another node.
                await asyncio.sleep(jittered(0.05, 0.5))
            else:
                await self._history_cache.load(
                    stream.subscription.with_history, stream.cursor, self._read_until(stream)
                )
        except Unavailable as error:
            log.warning("replay_delayed", error=error.message)
            await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))
        except Exception:
            log.exception("replay_failed")
            stream.close("internal_error")
        finally:
            stream.is_replaying = False
        self.catch_up(stream)

    def _write_view(self, stream: ReplayStream, view: HistoryView) -> None:
        subscription, began = stream.subscription, max(stream.head_at_open, self._hub.last_gap_end)
        zero = EventId(0, 0)
        gaps = _floors_by_channel(subscription, view.floors)
        gaps = {name: floor for name, floor in gaps.items() if floor > stream.reported_gaps.get(name, zero)}
        reason = "expired" if stream.cursor < began else "slow_client"
        if reason == "slow_client":
            policies = {
                match.name: match.declared.config.slow_client_policy for match in subscription.matches
            }
            if any(policies[name] == "disconnect" for name in gaps):
                stream.close("slow_client")
                return
        stream.reported_gaps.update(gaps)
        if gaps:
            id = None if view.events else view.until
            stream.send(self._encode_gaps(gaps, view.oldest, reason, stream.cursor, id), 0)
        self._write_events(stream, view.events, view.until)

    def _write_events(self, stream: ReplayStream, entries: Sequence[EncodedEvent], until: EventId) -> None:
        """Write entries in frames of about `MAX_FRAME_BYTES` bytes, while the stream is writable."""
        subscription = stream.subscription
        if (
            subscription.is_unfiltered
            and sum([len(entry.event.payload) for entry in entries]) < MAX_FRAME_BYTES
        ):
            self._send_page(stream, entries, until)
            return
        began = max(stream.head_at_open, self._hub.last_gap_end)
        page: list[EncodedEvent] = []
        size = 0
        for entry in entries:
            # An event without an id may be one that the client already has.
            if subscription.accepts(entry) and (entry.event.is_retained or entry.id > stream.head_at_open):
                # Earlier events were not missed by slowness: a client that reconnects gets all of them.
                if entry.id > began and self._hub.conflation.is_superseded(entry):
                    self._metrics.conflated_events.value += 1
                    continue
                page.append(entry)
                size += len(entry.event.payload)
            if size >= MAX_FRAME_BYTES:
                self._send_page(stream, page, entry.id)
                page, size = [], 0
                if not stream.is_writable:
                    return
        self._send_page(stream, page, until)

    def _send_page(self, stream: ReplayStream, page: Sequence[EncodedEvent], until: EventId) -> None:
        # The cursor first: writing may pause the stream, but the page counts as written.
        stream.cursor = until
        if page:
            blocks = stream.subscription.encode(page)
            if (
                len(blocks) >= LARGE_EVENT_BYTES
                and stream.events_sent == 0
                and len(page[0].event.payload) >= LARGE_EVENT_BYTES
            ):
                stream.on_large_first_event(page[0])
            stream.send(blocks, len(page))
            self._metrics.replayed_events.inc(len(page))

    def _encode_gaps(
        self,
        gaps: Mapping[str, EventId],
        oldest: Mapping[str, EventId],
        reason: str,
        after: EventId | None,
        id: EventId | None,
    ) -> bytes:
        """Return one ``stream.gap`` per channel; only the last has the ``id``, so that a cut skips none."""
        self._metrics.gaps.labels(reason).inc(len(gaps))
        last = len(gaps) - 1
        return b"".join(
            encode_gap_frame(
                name, reason, after=after, oldest=oldest.get(name), id=id if position == last else None
            )
            for position, name in enumerate(gaps)
        )


def _floors_by_channel(subscription: Subscription, floors: Mapping[str, EventId]) -> dict[str, EventId]:
    """Return the floors of a stream's channels: a template's floor applies to its instances."""
    zero = EventId(0, 0)
    both = {
        match.name: max(floors.get(match.name, zero), floors.get(match.declared.name, zero))
        for match in subscription.matches
    }
    return {name: floor for name, floor in both.items() if floor > zero}
