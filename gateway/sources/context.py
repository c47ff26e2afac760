"""The interface of sources: a `Source` reads records, and its `SourceContext` publishes them to the log."""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from itertools import islice
from typing import ClassVar

import msgspec
import structlog

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.template import Template
from gateway.core.backoff import jittered
from gateway.core.clock import unix_ms
from gateway.core.errors import (
    GatewayError,
    IdempotencyKeyReused,
    RecordRejected,
    StaleFencingToken,
    Unavailable,
)
from gateway.core.event import AppendedIds, Draft, FencingToken, Record, SourceOffset
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentError, RecentErrors
from gateway.sources.base import SourceGap, SourceLog, SourceState
from gateway.sources.election import Election
from gateway.sources.router import Router, gap_draft
from gateway.webhooks.formats.base import Outcome

log = structlog.get_logger("gateway.sources")

SOURCE_INTERRUPTED = "source_interrupted"
"""The reason of every gap that a source reports."""

RETRY_SECONDS = 0.3
"""Pause of a reader while the log is unavailable, before jitter."""


class EventAppender:
    """Appends drafts to the log, measures how long it takes, and counts published events by channel."""

    def __init__(self, event_log: SourceLog, catalog: ChannelCatalog, metrics: Metrics) -> None:
        self.log = event_log
        self._catalog = catalog
        self._append_seconds = metrics.broker_append_seconds
        self._published_counter = cache(metrics.events_published.labels)
        self.init_counters()

    def init_counters(self) -> None:
        """Let the counter of each declared channel exist from the start, at 0."""
        for name in self._catalog.declared:
            self._published_counter(name)

    async def append(
        self,
        drafts: Sequence[Draft],
        offset: SourceOffset | None = None,
        fence: FencingToken | None = None,
    ) -> AppendedIds:
        """Append a batch; see `gateway.broker.base.Broker.append`."""
        head_before = self.log.head
        with self._append_seconds.time():
            ids = await self.log.append(drafts, offset, fence)
        # An older id is that of the event which a draft repeats.
        counts = Counter(draft.channel for draft, id in zip(drafts, ids, strict=True) if id > head_before)
        for name, count in counts.items():
            match = self._catalog.resolve(name)
            if match is not None:
                self._published_counter(match.declared.name).inc(count)
        return ids


class SourceContext:
    """The gateway as a running source sees it. What reaches the log raises Unavailable while it is down."""

    def __init__(
        self,
        state: SourceState,
        router: Router,
        appender: EventAppender,
        metrics: Metrics,
        recent_errors: RecentErrors,
    ) -> None:
        self.state = state
        self.election = Election(state.name, appender.log)
        self.first_attempt_done = asyncio.Event()
        self.missed_since_ms: int | None = None
        """Unix ms since when clients have been served although this source was not connected yet."""
        self._router = router
        self._appender = appender
        self._metrics = metrics
        self._recent_errors = recent_errors
        self._log_throttle = LogThrottle()
        self._received_counter = metrics.events_received.labels(state.name)

    def report_connected(self) -> None:
        """Report that records flow from now on, so that this node may compete for the lease."""
        log.info("source_up", source=self.state.name)
        self.state.last_error = None
        self.state.set_status("up", unix_ms())
        self.election.enter()
        self.first_attempt_done.set()

    def report_lag(self, records: int) -> None:
        """Report how many records wait upstream."""
        self.state.lag = records

    # The lease and the offsets.

    async def wait_for_lease(self) -> FencingToken:
        """Wait until this node holds the source's lease. Cancelling is safe."""
        return await self.election.wait_for_lease()

    @property
    def has_lease(self) -> bool:
        """Whether this node holds the source's lease."""
        return self.election.fence is not None

    def reacquire_lease(self) -> None:
        """Release the lease and acquire it anew, so that an append under way is rejected as stale."""
        self.election.reacquire()

    async def read_offset(self, partition: str = "") -> str | None:
        """Return the offset that any node last stored for a partition."""
        return await self._appender.log.read_offset(self._offset_key(partition))

    async def list_partitions(self) -> list[str]:
        """Return the partitions of this source that have a stored offset."""
        return await self._appender.log.list_partitions(self.state.name)

    def _offset_key(self, partition: str) -> str:
        return f"{self.state.name}/{partition}" if partition else self.state.name

    # Publishing.

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None = None,
        fence: FencingToken | None = None,
        *,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        """Append a gap, the events of the records, and the offset reached in a partition, as one batch.

        Records that can never become events are counted and dropped. Raises StaleFencingToken if another
        node holds the lease by now.
        """
        now = unix_ms()
        gap_drafts = [] if gap is None else self._gap_drafts(gap, now)
        drafts = gap_drafts.copy()
        rejected: list[tuple[Record, RecordRejected]] = []
        for record in records:
            try:
                drafts += self._router.route(self.state.name, record, now)
            except RecordRejected as error:
                rejected.append((record, error))
        if drafts or offset is not None:
            reached = None if offset is None else SourceOffset(self._offset_key(partition), offset)
            self.count_duplicates((await self._appender.append(drafts, reached, fence)).duplicate_count)
        # Counted only now: a batch that could not be appended is read again.
        self._count_received(records)
        for record, why in rejected:
            self.count_rejection(why.code, why.message, topic=record.topic[:200])
        if gap is not None:
            self.missed_since_ms = None
            if gap_drafts:
                self._metrics.gaps.labels(SOURCE_INTERRUPTED).inc(len(gap_drafts))
            details = {name: value for name, value in gap._asdict().items() if value is not None}
            log.warning("source_gap_reported", source=self.state.name, **details)

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records; return for each the ids of its events, or the error that prevented them.

        ``atomic`` appends all or none, and raises the first error, which names the record's index. The
        caller counts rejections.
        """
        now = self._count_received(records)
        drafts: list[Draft] = []
        draft_counts: list[int | GatewayError] = []  # of each record
        for record in records:
            try:
                routed = self._router.route(self.state.name, record, now)
            except RecordRejected as error:
                if len(records) > 1 or record.batch_index:
                    error.message = f"record {record.batch_index}: {error.message}"
                if atomic:
                    raise
                draft_counts.append(error)
            else:
                drafts += routed
                draft_counts.append(len(routed))
        try:
            ids = await self._appender.append(drafts) if drafts else AppendedIds()
        except (IdempotencyKeyReused, Unavailable) as error:
            if atomic:
                raise
            return [error if isinstance(count, int) else count for count in draft_counts]
        self.count_duplicates(ids.duplicate_count)
        rest = iter(ids)
        return [list(islice(rest, each)) if isinstance(each, int) else each for each in draft_counts]

    def _gap_drafts(self, gap: SourceGap, now: int) -> list[Draft]:
        """Return a gap's drafts, one for each channel that it concerns."""
        data: dict[str, object] = {"reason": SOURCE_INTERRUPTED, "source": self.state.name}
        if gap.since is not None:
            data["after"] = f"{max(0, gap.since)}-0"
        if gap.missing is not None:
            data["missing"] = gap.missing
        payload = msgspec.json.encode(data)
        channels = self._router.channels(self.state.name, gap.topic)
        return [gap_draft(name, declared, payload, now) for name, declared in channels.items()]

    # Counting. The log gets one line a minute for each reason.

    def count_duplicates(self, events: int) -> None:
        """Count events that were sent again and are in the log already."""
        if not events:
            return
        self._metrics.events_duplicate.labels(self.state.name).inc(events)
        self.state.duplicates += events
        if self._log_throttle.should_log("duplicates") is not None:
            log.info("duplicates_dropped", source=self.state.name, total=self.state.duplicates)

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        """Count and log input that was rejected before it became a record; ``details`` go to the log line."""
        name = self.state.name
        self._metrics.events_rejected.labels(name, reason).inc()
        total = self.state.rejected[reason] = self.state.rejected.get(reason, 0) + 1
        # One entry per source, not per sender: the newest sender is in it.
        self._recent_errors.record(
            name, RecentError("source", reason, message, name, client=details.get("client"))
        )
        if self._log_throttle.should_log(("rejected", reason)) is not None:
            log.warning("rejected", source=name, reason=reason, why=message, total=total, **details)

    def _count_received(self, records: Sequence[Record]) -> int:
        """Count records, and return the time (unix ms) at which they were received."""
        now = unix_ms()
        if records:
            self._received_counter.inc(len(records))
            self.state.received += len(records)
            self.state.last_record_ms = now
        return now


async def read_under_lease(context: SourceContext, read: Callable[[FencingToken], Awaitable[None]]) -> None:
    """Call ``read`` whenever this node acquires the lease, until cancelled; ``read`` ends by an exception.

    After a failed append nobody knows whether its batch is in the log. It cannot arrive later, because the
    lease is released first, so the next call of ``read`` can rely on the stored offset.
    """
    while True:
        fence = await context.wait_for_lease()
        try:
            await read(fence)
        except (StaleFencingToken, Unavailable):
            context.reacquire_lease()
            await asyncio.sleep(jittered(RETRY_SECONDS, 0.5))


class Source(ABC):
    """One upstream: reads records and publishes them through a `SourceContext`."""

    is_exclusive: ClassVar[bool] = True
    """Whether only the node that holds the source's lease reads it."""

    def update_topics(self, topics: Sequence[Template]) -> bool:
        """Switch to other topics without a pause; False if the source has to be restarted for that."""
        return False

    @abstractmethod
    async def run(self, context: SourceContext) -> None:
        """Read until cancelled. After any exception the supervisor starts it again.

        Cancelling is safe at any time and closes all connections.
        """
