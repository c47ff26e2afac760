"""The hub of a node: its watched channels, their audiences, and the pump that writes.

`Hub.receive` gets the events of the log, in order, and only enqueues them: into the ring of their channel, if
it is watched, and into its audiences. The pump does the writing, a slice per turn of the event loop, so that
accepts, reads and heartbeats go on during a large fan-out. Publishing therefore never waits for a subscriber,
and costs nothing for channels without one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any

import structlog
from prometheus_client import Counter

from gateway.broker.base import Broker
from gateway.config.channel_catalog import ChannelCatalog, DeclaredChannel
from gateway.core.event import CONTROL_CHANNEL_PREFIX, GAP_EVENT_TYPE, Event, EventId, Retention
from gateway.core.history import History, merge_by_id
from gateway.hub.audience import Audience, Member
from gateway.hub.conflation import ConflationIndex
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.hub")

SLICE_WRITES = 512
"""Writes per turn of the loop: about five milliseconds of send() calls."""

SMALL_SLICE_WRITES = 48
"""The same for `FAVOR_LATENCY_SECONDS` after `Hub.favor_latency`: about half a millisecond."""

FAVOR_LATENCY_SECONDS = 0.05

MAX_RING_EVENTS = 100_000
"""Most events in a channel's ring, however recent."""

EVENT_OVERHEAD_BYTES = 700
"""Bytes of a ring's entry beside its payload and its encoded blocks: measured, rounded up."""

CONFLATION_BYTES_DIVISOR = 4
"""The conflation index gets this fraction of the rings' bytes, in addition to them."""

PumpWork = Callable[[Any, int], tuple[int, bool]]
"""One turn of pump work: (item, write budget) to (writes done, whether there is more to do)."""


class WatchedChannel:
    """A channel that at least one stream watches."""

    __slots__ = ("_audiences", "complete_since", "declared", "watchers")

    def __init__(self, declared: DeclaredChannel, complete_since: EventId) -> None:
        self.declared = declared
        self.complete_since = complete_since
        """The head when it was first watched: its ring is complete from there on."""
        self.watchers = 0
        # A single audience is stored as it is: most instances of templates have one. Bench row: own-channels.
        self._audiences: Audience | dict[Audience, None] | None = None

    @property
    def audiences(self) -> Collection[Audience]:
        """The audiences that listen to it."""
        found = self._audiences
        if isinstance(found, Audience):
            return (found,)
        return found or ()

    def add(self, audience: Audience) -> None:
        """Add an audience."""
        if self._audiences is None:
            self._audiences = audience
        elif isinstance(self._audiences, Audience):
            self._audiences = {self._audiences: None, audience: None}
        else:
            self._audiences[audience] = None

    def discard(self, audience: Audience) -> None:
        """Remove an audience; harmless if it is not there."""
        if self._audiences is audience:
            self._audiences = None
        elif isinstance(self._audiences, dict):
            self._audiences.pop(audience, None)


class Hub:
    """Distributes the events of the log to streams. Methods run on the event loop; none waits."""

    def __init__(
        self,
        broker: Broker,
        catalog: ChannelCatalog,
        metrics: Metrics,
        *,
        ring_seconds: float,
        ring_bytes: int,
        clock: Callable[[], int],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        """Create an empty hub; `start` begins to follow the broker.

        ``ring_seconds`` is how far back a ring reaches: as long as the write timeout, so that clients that
        are still connected can catch up from memory. All rings share ``ring_bytes``.
        """
        self.head = self.last_gap_end = EventId(0, 0)
        self._broker = broker
        self._catalog = catalog
        self._metrics = metrics
        self._clock = clock
        self._background = background
        self._ring: History[EncodedEvent] = History(max_bytes=ring_bytes, start=EventId(0, 0), clock=clock)
        self._channels: dict[str, WatchedChannel] = {}
        self._audiences: dict[Subscription, Audience] = {}
        self._work_queue: deque[tuple[PumpWork, Any]] = deque()
        self._is_pump_scheduled = False
        self._favor_latency_until = 0.0
        self._delivered_counters: dict[str, Counter] = {}
        self.last_event_at: dict[str, int] = {}
        """When channels with a ``stale_after`` last had an event, by declared name (unix ms)."""
        self.conflation = ConflationIndex(ring_bytes // CONFLATION_BYTES_DIVISOR)
        self.on_lagging: Callable[[Any], None] = lambda member: None
        self.on_control_event: Callable[[Event], None] = lambda event: None
        self.on_log_gap: Callable[[EventId, EventId], None] = lambda after, until: None
        """Called with the ids between which this node did not follow the log."""
        self.reconfigure(ring_seconds=ring_seconds, ring_bytes=ring_bytes)

    def reconfigure(self, *, ring_seconds: float, ring_bytes: int) -> None:
        """Apply other limits, and the catalog's changed channels.

        Streams with an old declaration of such a channel get no more events and must be closed next.
        """
        self._ring_retention = Retention(MAX_RING_EVENTS, round(ring_seconds * 1000))
        self._ring.set_max_bytes(ring_bytes)
        self.conflation.set_max_bytes(ring_bytes // CONFLATION_BYTES_DIVISOR)
        declared = self._catalog.declared
        for name in declared:
            if name not in self._delivered_counters:
                self._delivered_counters[name] = self._metrics.events_delivered.labels(name)
        self._stale_after_channels = {
            name for name, each in declared.items() if each.config.stale_after is not None
        }
        for name, channel in self._channels.items():
            new = self._catalog.current_declaration(name, channel.declared)
            if new is not None and new.stream_schema is channel.declared.stream_schema:
                channel.declared = new
                continue
            # The ring's entries are encoded by the old declaration: new streams read the log.
            self._forget_channel(name)
            channel.complete_since = self.head
            if new is not None:
                channel.declared = new
            for audience in list(channel.audiences):
                for other in audience.subscription.followed:
                    self._channels[other].discard(audience)

    def start(self) -> None:
        """Follow the log from its head. The broker must have been started."""
        self.head = self._broker.head
        self._broker.follow(self.receive, self.handle_log_gap)

    @property
    def channels(self) -> Mapping[str, WatchedChannel]:
        """The watched channels, by full name and, for templates, declared name."""
        return self._channels

    def receive(self, events: Sequence[Event]) -> None:
        """Enqueue events of the log, in order."""
        taken = 0
        try:
            if self._stale_after_channels:
                self._record_activity(events)
            for event in events:
                channel = self._channels.get(event.channel)
                flooded: Sequence[Audience] = ()
                if channel is not None:
                    flooded = self._enqueue(EncodedEvent(event, channel.declared), channel)
                elif event.channel.startswith(CONTROL_CHANNEL_PREFIX):
                    self.on_control_event(event)
                # Only now, so that no stream can join between two audiences of one event.
                self.head = event.id
                taken += 1
                for audience in flooded:
                    self._drop_backlog(audience)
        except Exception as error:
            self._background.record_failure("hub", error)
            self._abandon_batch(events[taken:], events[-1].id)

    def _abandon_batch(self, events: Sequence[Event], until: EventId) -> None:
        """Let the streams read the rest of a batch from the log; some may have its first event."""
        self.handle_log_gap(until)
        for event in events:
            # Retained ones are read again after the gap; the others are only here.
            if event.channel.startswith(CONTROL_CHANNEL_PREFIX) and not event.is_retained:
                self.on_control_event(event)

    def handle_log_gap(self, until: EventId) -> None:
        """Continue after an id up to which the log could not be followed: the streams read what they need.

        `last_gap_end` records it: a gap before that is not the client's fault.
        """
        lagging: list[Member] = []
        for audience in list(self._audiences.values()):
            members = list(audience.members)
            for member in members:
                self.leave(member)
            audience.clear()
            lagging += members
        for name, channel in self._channels.items():
            self._ring.drop_channel(name)
            channel.complete_since = until
        before, self.head, self.last_gap_end = self.head, until, until
        try:
            self.on_log_gap(before, until)
        finally:
            for member in lagging:
                self._start_catch_up(member)

    def _record_activity(self, events: Sequence[Event]) -> None:
        for event in events:
            match = self._catalog.resolve(event.channel)
            if (
                match is not None
                and match.declared.name in self._stale_after_channels
                and event.type != GAP_EVENT_TYPE
            ):
                self.last_event_at[match.declared.name] = event.id.ms

    def _enqueue(self, entry: EncodedEvent, channel: WatchedChannel) -> list[Audience]:
        """Add an event to its ring and audiences; return the audiences that are flooded."""
        # At most two formats of an event are encoded; an envelope is somewhat larger than the payload.
        if channel.declared.config.slow_client_policy == "conflate":
            self.conflation.record(entry)
        size = 2 * len(entry.event.payload) + EVENT_OVERHEAD_BYTES
        self._ring.append(entry, size, self._ring_retention, channel.complete_since)
        flooded = []
        for audience in channel.audiences:
            if not audience.enqueue(entry, self.head):
                continue
            if audience.is_flooded:
                flooded.append(audience)
            elif not audience.is_scheduled:
                audience.is_scheduled = True
                self.schedule(self._fan_out, audience)
        return flooded

    def _drop_backlog(self, audience: Audience) -> None:
        """Drop an audience's pending events; its members catch up from history at their own pace."""
        members = list(audience.members)
        for member in members:
            self.leave(member)
        audience.clear()
        for member in members:
            self._start_catch_up(member)

    def _start_catch_up(self, member: Member) -> None:
        """Let a stream that is in no audience catch up; if that fails, close it: its client resumes."""
        try:
            self.on_lagging(member)
        except Exception as error:
            self._background.record_failure("hub", error)
            member.close("internal_error")

    def watch(self, subscription: Subscription) -> None:
        """Keep the events that a new stream will need; pair with `unwatch`."""
        for name, declared in subscription.followed.items():
            channel = self._channels.get(name)
            if channel is None:
                channel = self._channels[name] = WatchedChannel(declared, self.head)
            channel.watchers += 1

    def unwatch(self, subscription: Subscription) -> None:
        """Undo `watch`."""
        for name in subscription.followed:
            channel = self._channels[name]
            channel.watchers -= 1
            if not channel.watchers:
                del self._channels[name]
                self._forget_channel(name)

    def _forget_channel(self, name: str) -> None:
        self._ring.drop_channel(name)
        self.conflation.forget_channel(name)

    def join(self, member: Member, subscription: Subscription) -> None:
        """Add a stream that has everything up to `head` to its audience."""
        audience = self._audiences.get(subscription)
        if audience is None:
            audience = self._audiences[subscription] = Audience(subscription, self.head)
            for name in subscription.followed:
                self._channels[name].add(audience)
        audience.join(member, self.head)

    def leave(self, member: Member) -> None:
        """Remove a stream from its audience; its cursor is what it was sent. Harmless when repeated."""
        audience = member.audience
        if audience is None:
            return
        audience.leave(member, self.head)
        if not audience.members:
            del self._audiences[audience.subscription]
            for name in audience.subscription.followed:
                self._channels[name].discard(audience)  # a reload may have removed it

    def ring_covers(self, subscription: Subscription, after: EventId) -> bool:
        """Tell whether the rings have everything after an id."""
        self._ring.expire()
        for name in subscription.followed:
            channel = self._channels.get(name)
            if channel is None or after < self._ring.floor(name, channel.complete_since):
                return False
        return True

    def read_ring(self, subscription: Subscription, after: EventId, limit: int) -> list[EncodedEvent]:
        """Return the first ``limit`` events after an id; check `ring_covers` first."""
        return merge_by_id(
            [self._ring.items_after(name, after, self.head, limit) for name in subscription.followed], limit
        )

    def last_event_id(self, name: str, until: EventId) -> EventId:
        """Return the id of a watched channel's last event up to ``until``, or since when it is watched."""
        channel = self._channels.get(name)
        return self._ring.last_id(name, until, None if channel is None else channel.complete_since)

    def schedule(self, work: PumpWork, item: Any) -> None:
        """Queue a turn in the pump for ``item``; work that has more to do is queued again."""
        self._work_queue.append((work, item))
        if not self._is_pump_scheduled:
            self._is_pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def favor_latency(self) -> None:
        """Write in small slices for a moment, because a response takes several turns of the loop.

        Small slices at all times would slow every broadcast; bench rows: storm, fanout.
        """
        self._favor_latency_until = monotonic() + FAVOR_LATENCY_SECONDS

    def run_after_writes(self, call: Callable[[], None]) -> None:
        """Call a function in the pump, after all writes that wait there."""
        self.schedule(_run_callback, call)

    def _pump(self) -> None:
        try:
            budget = SLICE_WRITES if monotonic() >= self._favor_latency_until else SMALL_SLICE_WRITES
            while self._work_queue and budget > 0:
                work, item = self._work_queue.popleft()
                try:
                    used, more = work(item, budget)
                except Exception as error:  # one broken stream must not stop the pump for all
                    self._background.record_failure("pump", error)
                    used, more = 1, False
                budget -= max(used, 1)
                if more:
                    self._work_queue.append((work, item))
        finally:
            self._is_pump_scheduled = bool(self._work_queue)
            if self._is_pump_scheduled:
                asyncio.get_running_loop().call_soon(self._pump)

    def _fan_out(self, audience: Audience, budget: int) -> tuple[int, bool]:
        try:
            written, frame = audience.write_slice(budget, self.head)
        except Exception as error:  # a write failed midway: the cursors say which members have the frame
            self._background.record_failure("pump", error)
            audience.is_scheduled = False
            self._drop_backlog(audience)
            return 1, False
        if frame is not None and written:
            metrics = self._metrics
            metrics.bytes_sent.value += written * len(frame.data)
            metrics.delivery_lag_seconds.observe(max(0, self._clock() - frame.oldest_ms) / 1000)
            for name, count in frame.counts_by_channel.items():
                self._delivered_counters[name].inc(written * count)
        audience.is_scheduled = audience.is_busy
        return written, audience.is_scheduled


def _run_callback(call: Callable[[], None], budget: int) -> tuple[int, bool]:
    call()
    return 1, False
