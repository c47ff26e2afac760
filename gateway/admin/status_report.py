"""The types of ``/status``, and how the reports of several workers become one. Pure.

The table in docs/operations.md is generated from these types, with the descriptions in `Meta`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from gateway.observability.recent_errors import MAX_ERRORS, RecentError

Phase = Literal["starting", "serving", "pre_drain", "streams", "requests", "sources"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""The phases of a node in their order, see `gateway.server.shutdown`."""

ReloadStatus = Literal["ok", "unchanged", "failed"]

_WORST_FIRST = ("down", "starting", "off", "up")


def _sums(reports: Sequence[Struct], *fields: str) -> dict[str, Any]:
    return {name: sum(getattr(each, name) for each in reports) for name in fields}


class ReloadError(Struct, frozen=True):
    """One error in the file; line and column count from 1."""

    line: int
    column: int
    path: str
    message: str


class ReloadResult(Struct, frozen=True):
    """The result of one reload."""

    at_ms: int
    result: Annotated[ReloadStatus, Meta(description="ok, unchanged, failed")]
    message: str
    errors: Sequence[ReloadError] = ()
    changes: Annotated[Sequence[str], Meta(description="each difference with its effect, one line each")] = ()
    ended: Annotated[int, Meta(description="streams that had to end, on all workers")] = 0


class ConfigStatus(Struct, frozen=True):
    """The configuration file."""

    file: str
    loaded_ms: int
    last_reload: Annotated[ReloadResult | None, Meta(description="null before the first")] = None


class BrokerStatus(Struct, frozen=True):
    """The log."""

    type: str
    up: bool
    head: Annotated[str, Meta(description="the newest id")]

    @classmethod
    def merge(cls, reports: Sequence["BrokerStatus"]) -> "BrokerStatus":
        """Return the log as all workers see it together."""
        head = max((each.head for each in reports), key=lambda id: [int(part) for part in id.split("-")])
        return cls(reports[0].type, all(each.up for each in reports), head)


class StreamsStatus(Struct, frozen=True):
    """The open streams."""

    active: int = 0
    lagging: int = 0
    limit: int = 0
    lag_seconds: Annotated[float, Meta(description="how far the slowest one lags")] = 0.0

    @classmethod
    def merge(cls, reports: Sequence["StreamsStatus"]) -> "StreamsStatus":
        """Return the streams of all workers."""
        lag = max((each.lag_seconds for each in reports), default=0.0)
        return cls(**_sums(reports, "active", "lagging", "limit"), lag_seconds=lag)


class TotalsStatus(Struct, frozen=True):
    """Counts since the start of the process."""

    opened: int = 0
    refused: Annotated[int, Meta(description="streams")] = 0
    received: int = 0
    rejected: Annotated[int, Meta(description="records")] = 0
    published: int = 0
    delivered: Annotated[int, Meta(description="events")] = 0
    bytes_sent: int = 0
    gaps: int = 0
    lag_seconds: float = 0.0
    lag_count: Annotated[
        int, Meta(description="`lag_seconds` / `lag_count` is the mean delay from append to socket")
    ] = 0

    @classmethod
    def merge(cls, reports: Sequence["TotalsStatus"]) -> "TotalsStatus":
        """Return the sums."""
        return cls(**_sums(reports, *cls.__struct_fields__))


class SourceStatus(Struct, frozen=True):
    """One source."""

    name: str
    type: str
    status: Annotated[str, Meta(description="up, starting, down, off")]
    since_ms: int = 0
    last_event_ms: int | None = None
    last_error: str | None = None
    lag: Annotated[float | None, Meta(description="records that wait upstream")] = None
    stale: bool | None = None
    received: int = 0
    rejected: Annotated[dict[str, int], Meta(description="by reason")] = field(default_factory=dict)
    duplicates: Annotated[int, Meta(description="repeated deliveries that made no event")] = 0
    restarts: int = 0
    leader: Annotated[
        bool | UnsetType, Meta(description="only where one node reads for all: whether it is this one")
    ] = UNSET

    @classmethod
    def merge(cls, reports: Sequence["SourceStatus"]) -> "SourceStatus":
        """Return a source as the worker that reads it sees it, else as the worker where it is worst."""
        leaders = [each for each in reports if each.leader is True]
        shown = min(leaders or reports, key=lambda each: _WORST_FIRST.index(each.status))
        rejected: Counter[str] = Counter()
        for each in reports:
            rejected.update(each.rejected)
        return msgspec.structs.replace(
            shown,
            **_sums(reports, "received", "duplicates", "restarts"),
            rejected=dict(rejected),
            last_event_ms=max(each.last_event_ms or 0 for each in reports) or None,
            # Without a leader, each worker sees only the posts on its own connections.
            stale=shown.stale and (bool(leaders) or all(each.stale for each in reports)),
        )


class ChannelStatus(Struct, frozen=True, rename={"sources": "from"}):
    """One channel."""

    name: str
    sources: Sequence[str] = ()
    listeners: int = 0
    published: int = 0
    delivered: int = 0
    stale: bool | None = None

    @classmethod
    def merge(cls, reports: Sequence["ChannelStatus"]) -> "ChannelStatus":
        """Return the channel of all workers."""
        return msgspec.structs.replace(
            reports[0],
            **_sums(reports, "listeners", "published", "delivered"),
            stale=any(each.stale for each in reports),
        )


class WorkerStatus(Struct, frozen=True):
    """One worker process, as its parent sees it."""

    worker: int
    pid: int | None
    restarts: int
    uptime_seconds: float | None
    streams: int | None
    ready: bool
    phase: Phase | None


class StatusReport(Struct, frozen=True, kw_only=True):
    """What ``/status`` shows of a node, or of several workers together."""

    version: Annotated[str, Meta(description="of the gateway that answers")]
    uptime_seconds: Annotated[float, Meta(description="since the process started")]
    now_ms: Annotated[int, Meta(description="the clock of the node that answers, in unix milliseconds")]
    ready: Annotated[bool, Meta(description="as `/readyz`")]
    not_ready: Annotated[Sequence[str], Meta(description="the reasons, as `/readyz` gives them")]
    development: Annotated[bool, Meta(description="whether the try-it panel is on")]
    phase: Annotated[
        Phase | None,
        Meta(
            description="`starting`, `serving`, or the phase of the shutdown (above); null without a worker"
        ),
    ]
    config: Annotated[ConfigStatus | None, Meta(description="null where there is no file")]
    broker: Annotated[BrokerStatus | None, Meta(description="null while no worker answers")]
    streams: StreamsStatus
    totals: TotalsStatus
    sources: Sequence[SourceStatus]
    channels: Sequence[ChannelStatus]
    recent_errors: Annotated[
        Sequence[RecentError],
        Meta(description="the newest 50; the same error of the same cause is one entry"),
    ]
    workers: Annotated[Sequence[WorkerStatus] | UnsetType, Meta(description="only with several workers")] = (
        UNSET
    )

    def merge(self, reports: Sequence["StatusReport"], workers: Sequence[WorkerStatus]) -> "StatusReport":
        """Return this report of a parent, which has no streams itself, with those of its workers."""
        brokers = [each.broker for each in reports if each.broker is not None]
        return msgspec.structs.replace(
            self,
            phase=min((each.phase for each in reports if each.phase), key=PHASES.index, default=None),
            broker=BrokerStatus.merge(brokers) if brokers else None,
            streams=StreamsStatus.merge([each.streams for each in reports]),
            totals=TotalsStatus.merge([each.totals for each in reports]),
            sources=[SourceStatus.merge(each) for each in _by_name(one.sources for one in reports)],
            channels=[ChannelStatus.merge(each) for each in _by_name(one.channels for one in reports)],
            recent_errors=merge_errors(
                [*self.recent_errors, *(e for one in reports for e in one.recent_errors)]
            ),
            workers=workers,
        )


Named = TypeVar("Named", SourceStatus, ChannelStatus)


def _by_name(reports: Iterable[Sequence[Named]]) -> Iterable[list[Named]]:
    """Return what several reports say of each name. During a reload a worker may not have all of them yet."""
    found: dict[str, list[Named]] = {}
    for report in reports:
        for each in report:
            found.setdefault(each.name, []).append(each)
    return found.values()


def merge_errors(errors: Iterable[RecentError]) -> list[RecentError]:
    """Return the newest first, with the same error of the same cause as one."""
    found: dict[tuple[object, ...], RecentError] = {}
    for each in sorted(errors, key=lambda error: error.last_at_ms):
        cause = (each.kind, each.code, each.source, each.origin, each.client)
        count = each.count + (found[cause].count if cause in found else 0)
        found[cause] = msgspec.structs.replace(each, count=count)
    return sorted(found.values(), key=lambda error: -error.last_at_ms)[:MAX_ERRORS]
