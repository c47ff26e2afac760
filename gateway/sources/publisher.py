"""From a source's records to appended events, with everything counted on the way."""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import structlog

from gateway.core.errors import GatewayError, KeyReused, Rejected, Unavailable
from gateway.core.event import Appended, Cursor, Draft, Fence, Record
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import Refusal, Refusals
from gateway.sources.base import Gap, SourceState
from gateway.sources.router import Router, gap_draft
from gateway.webhooks.formats.base import Outcome

log = structlog.get_logger("gateway.sources")

INTERRUPTED = "source_interrupted"
"""The reason of every gap that a source tells."""

LOG_EVERY_MS = 60_000
"""How often (milliseconds) the log tells of rejections for one reason."""

Append = Callable[[Sequence[Draft], Cursor | None, Fence | None], Awaitable[Appended]]


def cursor_name(source: str, part: str) -> str:
    """Return the name under which the log keeps how far a part of a source was read."""
    return f"{source}/{part}" if part else source


class Publisher:
    """One source's way into the log."""

    def __init__(
        self,
        state: SourceState,
        router: Router,
        append: Append,
        metrics: Metrics,
        clock: Callable[[], int],
        refusals: Refusals | None = None,
    ) -> None:
        self.state = state
        self._refusals = refusals or Refusals()
        self._router = router
        self._append = append
        self._metrics = metrics
        self._clock = clock
        self._told: dict[str, int] = {}
        self._repeated_logged = -LOG_EVERY_MS
        self._received = metrics.events_received.labels(state.name)

    async def publish(
        self,
        records: Sequence[Record],
        position: str | None,
        fence: Fence | None,
        part: str = "",
        gap: Gap | None = None,
    ) -> None:
        """Append a gap and what the records become; count and drop those that can never become events."""
        now = self._clock()
        drafts = [] if gap is None else self._gap_drafts(gap, now)
        gaps = len(drafts)
        refused: list[tuple[Record, Rejected]] = []
        for record in records:
            try:
                drafts.extend(self._router.drafts(self.state.name, record, now))
            except Rejected as error:
                refused.append((record, error))
        if drafts or position is not None:
            appended = await self._append(drafts, self._cursor(position, part), fence)
            self.repeated(appended.duplicates)
        # Only now: what could not be appended comes again.
        self._receive(records)
        if gaps:
            self._metrics.gaps.labels(INTERRUPTED).inc(gaps)
        for record, why in refused:
            self.reject(why.code, why.message, topic=record.topic[:200])

    async def publish_each(self, records: Sequence[Record], *, atomic: bool) -> Sequence[Outcome]:
        """Append the records that can be events, or with ``atomic`` all or none.

        Returns of each the ids of its events, or why there are none; with ``atomic`` raises the first
        refusal, its message with the record's place.
        """
        now = self._receive(records)
        drafts: list[Draft] = []
        each: list[int | GatewayError] = []  # how many drafts, or none
        for record in records:
            try:
                of_record = self._router.drafts(self.state.name, record, now)
            except Rejected as error:
                if len(records) > 1 or record.index:
                    error.message = f"record {record.index}: {error.message}"
                if atomic:
                    raise
                each.append(error)
            else:
                drafts += of_record
                each.append(len(of_record))
        try:
            ids = await self._append(drafts, None, None) if drafts else Appended()
            self.repeated(ids.duplicates)
        except KeyReused as error:
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

    def repeated(self, events: int) -> None:
        """Count events that were sent again, and are in the log already; the log says so once a minute."""
        if not events:
            return
        self._metrics.events_duplicate.labels(self.state.name).inc(events)
        self.state.duplicates += events
        now = self._clock()
        if now - self._repeated_logged >= LOG_EVERY_MS:
            self._repeated_logged = now
            log.info("duplicates_dropped", source=self.state.name, total=self.state.duplicates)

    def _gap_drafts(self, gap: Gap, now: int) -> list[Draft]:
        """Return a gap's drafts, one for each channel that it concerns."""
        told: dict[str, object] = {"reason": INTERRUPTED, "source": self.state.name}
        if gap.since is not None:
            told["after"] = f"{max(0, gap.since)}-0"
        if gap.missing is not None:
            told["missing"] = gap.missing
        payload = msgspec.json.encode(told)
        channels = self._router.channels(self.state.name, gap.topic)
        return [gap_draft(name, declared, payload, now) for name, declared in channels.items()]

    def _cursor(self, position: str | None, part: str) -> Cursor | None:
        return None if position is None else Cursor(cursor_name(self.state.name, part), position)

    def reject(self, reason: str, why: str = "", **about: str | None) -> None:
        """Count something that could not be taken; the log says so at most once a minute for each reason."""
        self._metrics.events_rejected.labels(self.state.name, reason).inc()
        count = self.state.rejected[reason] = self.state.rejected.get(reason, 0) + 1
        # Whoever sent it: one fault of a source is one entry, with its last sender.
        self._refusals.note(
            self.state.name, Refusal("source", reason, why, self.state.name, client=about.get("client"))
        )
        now = self._clock()
        if now - self._told.get(reason, -LOG_EVERY_MS) >= LOG_EVERY_MS:
            self._told[reason] = now
            log.warning("rejected", source=self.state.name, reason=reason, why=why, total=count, **about)

    def _receive(self, records: Sequence[Record]) -> int:
        now = self._clock()
        if records:
            self._received.inc(len(records))
            self.state.received += len(records)
            self.state.last_event = now
        return now
