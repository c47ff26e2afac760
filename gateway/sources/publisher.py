"""From a source's records to appended events, with everything counted on the way."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from gateway.core.errors import GatewayError, IdempotencyKeyReused, RecordRejected, Unavailable
from gateway.core.event import AppendedIds, Draft, FencingToken, Record, SourceOffset
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentError, RecentErrors
from gateway.sources.base import SourceGap, SourceState
from gateway.sources.router import Router, gap_draft
from gateway.webhooks.formats.base import Outcome

log = structlog.get_logger("gateway.sources")

SOURCE_INTERRUPTED = "source_interrupted"
"""The reason of every gap that a source tells."""

LOG_INTERVAL_MS = 60_000
"""How often (milliseconds) the log tells of rejections for one reason."""

AppendDrafts = Callable[[Sequence[Draft], SourceOffset | None, FencingToken | None], Awaitable[AppendedIds]]


def offset_key(source: str, partition: str) -> str:
    """Return the name under which the log keeps how far a part of a source was read."""
    return f"{source}/{partition}" if partition else source


class Publisher:
    """One source's way into the log."""

    def __init__(
        self,
        state: SourceState,
        router: Router,
        append: AppendDrafts,
        metrics: Metrics,
        clock: Callable[[], int],
        recent_errors: RecentErrors | None = None,
    ) -> None:
        self.state = state
        self._recent_errors = recent_errors or RecentErrors()
        self._router = router
        self._append = append
        self._metrics = metrics
        self._clock = clock
        self._logged_at_ms: dict[str, int] = {}
        self._duplicates_logged_at_ms = -LOG_INTERVAL_MS
        self._received_counter = metrics.events_received.labels(state.name)

    async def publish(
        self,
        records: Sequence[Record],
        offset: str | None,
        fence: FencingToken | None,
        partition: str = "",
        gap: SourceGap | None = None,
    ) -> None:
        """Append a gap and what the records become; count and drop those that can never become events."""
        now = self._clock()
        drafts = [] if gap is None else self._gap_drafts(gap, now)
        gaps = len(drafts)
        refused: list[tuple[Record, RecordRejected]] = []
        for record in records:
            try:
                drafts.extend(self._router.route(self.state.name, record, now))
            except RecordRejected as error:
                refused.append((record, error))
        if drafts or offset is not None:
            appended = await self._append(drafts, self._source_offset(offset, partition), fence)
            self.count_duplicates(appended.duplicate_count)
        # Only now: what could not be appended comes again.
        self._count_received(records)
        if gaps:
            self._metrics.gaps.labels(SOURCE_INTERRUPTED).inc(gaps)
        for record, why in refused:
            self.count_rejection(why.code, why.message, topic=record.topic[:200])

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records that can be events, or with ``atomic`` all or none.

        Returns of each the ids of its events, or why there are none; with ``atomic`` raises the first
        refusal, its message with the record's place.
        """
        now = self._count_received(records)
        drafts: list[Draft] = []
        each: list[int | GatewayError] = []  # how many drafts, or none
        for record in records:
            try:
                of_record = self._router.route(self.state.name, record, now)
            except RecordRejected as error:
                if len(records) > 1 or record.batch_index:
                    error.message = f"record {record.batch_index}: {error.message}"
                if atomic:
                    raise
                each.append(error)
            else:
                drafts += of_record
                each.append(len(of_record))
        try:
            ids = await self._append(drafts, None, None) if drafts else AppendedIds()
            self.count_duplicates(ids.duplicate_count)
        except IdempotencyKeyReused as error:
            if atomic:
                raise
            return [error if isinstance(count, int) else count for count in each]
        except Unavailable as error:
            if atomic:
                raise
            return [error if isinstance(count, int) else count for count in each]
        outcomes: list[Outcome] = []
        first = 0
        for found in each:
            if isinstance(found, int):
                outcomes.append(ids[first : first + found])
                first += found
            else:
                outcomes.append(found)
        return outcomes

    def count_duplicates(self, events: int) -> None:
        """Count events that were sent again, and are in the log already; the log says so once a minute."""
        if not events:
            return
        self._metrics.events_duplicate.labels(self.state.name).inc(events)
        self.state.duplicates += events
        now = self._clock()
        if now - self._duplicates_logged_at_ms >= LOG_INTERVAL_MS:
            self._duplicates_logged_at_ms = now
            log.info("duplicates_dropped", source=self.state.name, total=self.state.duplicates)

    def _gap_drafts(self, gap: SourceGap, now: int) -> list[Draft]:
        """Return a gap's drafts, one for each channel that it concerns."""
        told: dict[str, object] = {"reason": SOURCE_INTERRUPTED, "source": self.state.name}
        if gap.since is not None:
            told["after"] = f"{max(0, gap.since)}-0"
        if gap.missing is not None:
            told["missing"] = gap.missing
        payload = msgspec.json.encode(told)
        channels = self._router.channels(self.state.name, gap.topic)
        return [gap_draft(name, declared, payload, now) for name, declared in channels.items()]

    def _source_offset(self, offset: str | None, partition: str) -> SourceOffset | None:
        return None if offset is None else SourceOffset(offset_key(self.state.name, partition), offset)

    def count_rejection(self, reason: str, message: str = "", **details: str | None) -> None:
        """Count something that could not be taken; the log says so at most once a minute for each reason."""
        self._metrics.events_rejected.labels(self.state.name, reason).inc()
        count = self.state.rejected[reason] = self.state.rejected.get(reason, 0) + 1
        # Whoever sent it: one fault of a source is one entry, with its last sender.
        self._recent_errors.record(
            self.state.name,
            RecentError("source", reason, message, self.state.name, client=details.get("client")),
        )
        now = self._clock()
        if now - self._logged_at_ms.get(reason, -LOG_INTERVAL_MS) >= LOG_INTERVAL_MS:
            self._logged_at_ms[reason] = now
            log.warning(
                "rejected", source=self.state.name, reason=reason, why=message, total=count, **details
            )

    def _count_received(self, records: Sequence[Record]) -> int:
        now = self._clock()
        if records:
            self._received_counter.inc(len(records))
            self.state.received += len(records)
            self.state.last_record_ms = now
        return now
