"""The status of several workers as one report."""

from typing import Any

from msgspec.structs import replace

from gateway.admin.status_report import (
    BrokerStatus,
    ChannelStatus,
    SourceStatus,
    StatusReport,
    StreamsStatus,
    TotalsStatus,
)
from gateway.observability.recent_errors import MAX_ERRORS, RecentError

PARENT = StatusReport(
    version="1",
    uptime_seconds=1.0,
    now_ms=1,
    ready=True,
    not_ready=[],
    development=False,
    phase=None,
    config=None,
    broker=None,
    streams=StreamsStatus(),
    totals=TotalsStatus(),
    sources=[],
    channels=[],
    recent_errors=[],
)
TOTALS = TotalsStatus(*(2 for _ in TotalsStatus.__struct_fields__))


def refusal(**over: Any) -> RecentError:
    """Return an error as a worker reports it."""
    return replace(RecentError("stream", "origin_refused", "no", origin="https://x", count=2), **over)


def report(head: str, up: bool, **source: Any) -> StatusReport:
    """Return one worker's ``/status``."""
    return replace(
        PARENT,
        phase="serving",
        broker=BrokerStatus("sqlite", up, head),
        streams=StreamsStatus(1, 0, 10, 0.5),
        totals=TOTALS,
        sources=[
            replace(
                SourceStatus("app", "t", "up", received=1, rejected={"bad_json": 1}, stale=False), **source
            )
        ],
        channels=[ChannelStatus("orders", [], 2, 3, 4, False)],
        recent_errors=[refusal(last_at_ms=int(head.partition("-")[0]))],
    )


def merged(*reports: StatusReport) -> StatusReport:
    return PARENT.merge(reports, [])


def test_a_source_is_shown_as_the_worker_that_reads_it_sees_it() -> None:
    """The others stand by, and know neither its lag nor its error."""
    reading = report("9-0", True, status="down", leader=True, last_event_ms=7)
    standing = report("10-0", True, status="up", leader=False)
    whole = merged(standing, reading)
    assert whole.sources[0].status == "down"
    assert whole.sources[0].received == 2
    assert whole.sources[0].rejected == {"bad_json": 2}
    assert whole.sources[0].last_event_ms == 7
    assert whole.broker == BrokerStatus("sqlite", True, "10-0")
    assert whole.streams == StreamsStatus(2, 0, 20, 0.5)
    assert whole.totals == TotalsStatus(*(4 for _ in TotalsStatus.__struct_fields__))
    (channel,) = whole.channels
    assert (channel.listeners, channel.published, channel.delivered) == (4, 6, 8)
    assert whole.phase == "serving"


def test_without_a_leader_the_worst_is_shown() -> None:
    """One worker that cannot reach the upstream is worth a look."""
    whole = merged(report("1-0", True, status="up"), report("1-0", False, status="down"))
    assert whole.sources[0].status == "down"
    assert whole.broker is not None and whole.broker.up is False


def test_no_worker_is_no_fault() -> None:
    """All of them may be starting."""
    assert merged() == replace(PARENT, workers=[])


def test_errors_of_one_cause_are_one_and_the_newest_are_kept() -> None:
    """A page that every worker refuses is one page; the parent's own errors are among them."""
    own = RecentError("admin", "missing_token", "no", client="127.0.0.1", count=1, last_at_ms=20)
    parent = replace(PARENT, recent_errors=[own])
    both, guard = parent.merge([report("10-0", True), report("30-0", True)], []).recent_errors
    assert (both.code, both.count, both.last_at_ms) == ("origin_refused", 4, 30)
    assert (guard.code, guard.count, guard.last_at_ms) == ("missing_token", 1, 20)
    many = [refusal(client=str(number), last_at_ms=number) for number in range(2 * MAX_ERRORS)]
    kept = merged(replace(report("10-0", True), recent_errors=many)).recent_errors
    assert [each.last_at_ms for each in kept] == list(range(2 * MAX_ERRORS - 1, MAX_ERRORS - 1, -1))


def test_a_webhook_is_stale_when_all_say_so() -> None:
    """Each worker receives the posts of its own connections only."""
    silent, busy = report("1-0", True, stale=True), report("1-0", True)
    assert merged(silent, busy).sources[0].stale is False
    assert merged(silent, silent).sources[0].stale is True
    assert merged(busy, report("1-0", True, stale=True, leader=True)).sources[0].stale is True


def test_a_worker_that_reloads_later_hides_no_source() -> None:
    """A new source that only one worker has yet is shown, and the others stay what they are."""
    more = replace(
        report("1-0", True), sources=[SourceStatus("new", "t", "up"), *report("1-0", True).sources]
    )
    assert [(each.name, each.received) for each in merged(more, report("1-0", True)).sources] == [
        ("new", 0),
        ("app", 2),
    ]
