"""From a source's records to appended events, with everything counted on the way."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from gateway.errors import GatewayError, Rejected, Unavailable
from gateway.event import Cursor, Draft, EventId, Fence, Record
from gateway.metrics import Metrics
from gateway.sources.base import SourceState
from gateway.sources.router import Router, gap_draft
from gateway.webhooks.post import Outcome

log = structlog.get_logger("gateway.sources")

LOG_EVERY_MS = 60_000
"""How often (milliseconds) the log tells of rejections for one reason."""

Append = Callable[[Sequence[Draft], Cursor | None, Fence | None], Awaitable[list[EventId]]]


def cursor_name(source: str, part: str) -> str:
    """Return the name under which the log keeps how far a part of a source was read."""
    return f"{source}/{part}" if part else source


class Gap(NamedTuple):
    """Records of a source, or of one topic, that may be lost."""

    reason: str
    since: int
    """Unix milliseconds."""
    topic: str | None = None
    missing: int | None = None
    """How many, where that is known."""


class Publisher:
    """One source's way into the log."""

    def __init__(
        self,
        state: SourceState,
        router: Router,
        append: Append,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self.state = state
        self._router = router
        self._append = append
        self._metrics = metrics
        self._clock = clock
        self._told: dict[str, int] = {}
        self._received = metrics.events_received.labels(state.name)

    async def publish(
        self, records: Sequence[Record], position: str | None, fence: Fence | None, part: str = ""
    ) -> None:
        """Append what the records become; count and drop those that can never become events."""
        now = self._receive(records)
        drafts: list[Draft] = []
        for record in records:
            try:
                drafts.extend(self._router.drafts(self.state.name, record, now))
            except Rejected as error:
                self.reject(error.code, error.message, topic=record.topic[:200])
        if drafts or position is not None:
            await self._append(drafts, self._cursor(position, part), fence)

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
            ids = await self._append(drafts, None, None) if drafts else []
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

    async def tell_gap(self, gap: Gap, position: str, fence: Fence, part: str = "") -> None:
        """Append a gap to the channels that it concerns."""
        told: dict[str, object] = {
            "reason": gap.reason,
            "source": self.state.name,
            "after": f"{max(0, gap.since)}-0",
        }
        if gap.missing is not None:
            told["missing"] = gap.missing
        payload, now = msgspec.json.encode(told), self._clock()
        channels = self._router.channels(self.state.name, gap.topic)
        drafts = [gap_draft(name, declared, payload, now) for name, declared in channels.items()]
        await self._append(drafts, self._cursor(position, part), fence)
        self._metrics.gaps.labels(gap.reason).inc(len(drafts))

    def _cursor(self, position: str | None, part: str) -> Cursor | None:
        return None if position is None else Cursor(cursor_name(self.state.name, part), position)

    def reject(self, reason: str, why: str = "", **about: str | None) -> None:
        """Count something that could not be taken; the log says so at most once a minute for each reason."""
        self._metrics.events_rejected.labels(self.state.name, reason).inc()
        count = self.state.rejected[reason] = self.state.rejected.get(reason, 0) + 1
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
