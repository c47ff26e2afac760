"""What several workers tell, as one."""

from typing import Any

import msgspec

from gateway.observability.metrics import MergeRule, MetricFamily, Metrics, render
from gateway.observability.recent_errors import MAX_ERRORS, RecentError
from gateway.server.workers.merge import MetricTotals, merge_families, merge_status


def family(name: str, type: str, value: float, merge: MergeRule = "sum", **labels: str) -> MetricFamily:
    """Return a metric with one sample."""
    return MetricFamily(name, type, "text", merge, [(name, tuple(labels.items()), value)])


def values(families: list[MetricFamily]) -> dict[str, float]:
    """Return the samples by name."""
    return {name: value for each in families for name, _, value in each.samples}


def test_counters_are_added_and_gauges_follow_their_rule() -> None:
    """One answer for all workers; a source that one of them has up is up."""
    one = [
        family("a", "counter", 3),
        family("b", "gauge", 5),
        family("c", "gauge", 1, "min"),
        family("d", "gauge", 0, "max"),
    ]
    two = [
        family("a", "counter", 4),
        family("b", "gauge", 6),
        family("c", "gauge", 0, "min"),
        family("d", "gauge", 1, "max"),
    ]
    assert values(merge_families([one, two])) == {"a": 7, "b": 11, "c": 0, "d": 1}


def test_samples_are_told_apart_by_their_labels() -> None:
    """Two channels are not one."""
    both = merge_families(
        [[family("a", "counter", 1, channel="x")], [family("a", "counter", 2, channel="y")]]
    )
    assert both[0].samples == [("a", (("channel", "x"),), 1), ("a", (("channel", "y"),), 2)]


def test_what_a_dead_worker_counted_stays_and_its_gauges_go() -> None:
    """A sum that fell would look like a restart of everything, a gauge that stayed like streams that live."""
    totals = MetricTotals()
    totals.retire([family("a", "counter", 3), family("g", "gauge", 3)])
    totals.retire([family("a", "counter", 2)])
    assert values(totals.combine([[family("a", "counter", 1), family("g", "gauge", 1)]])) == {
        "a": 6,
        "g": 1,
    }


def test_the_exposition_is_what_a_single_process_shows() -> None:
    """Histograms, counters and gauges come out as prometheus-client writes them."""
    metrics = Metrics()
    metrics.bind_gauge("active_connections", lambda: 3)
    metrics.connections.value += 5
    metrics.disconnects.labels("max_age").inc()
    metrics.connection_seconds.observe(2)
    families = list(metrics.collect())
    assert render(merge_families([families])) == render(families)
    text = render(merge_families([families, families])).decode()
    assert "# TYPE sse_gateway_connection_seconds histogram" in text
    assert 'sse_gateway_connection_seconds_bucket{le="10.0"} 2.0' in text
    assert 'sse_gateway_disconnects_total{reason="max_age"} 2.0' in text
    assert "sse_gateway_connections_total 10.0" in text


TOTALS = (
    *("opened", "refused", "received", "rejected", "published", "delivered", "bytes_sent", "gaps"),
    *("lag_seconds", "lag_count"),
)


def refusal(**over: Any) -> dict[str, Any]:
    """Return a refusal as ``/status`` tells it."""
    told = msgspec.structs.asdict(RecentError("stream", "origin_refused", "no", origin="https://x", times=2))
    return told | over


def report(head: str, up: bool, source: dict[str, Any]) -> dict[str, Any]:
    """Return one worker's ``/status``."""
    plain = {
        "name": "app",
        "received": 1,
        "rejected": {"bad_json": 1},
        "duplicates": 0,
        "restarts": 0,
        "stale": False,
        "last_event_ms": None,
    }
    return {
        "phase": "serving",
        "broker": {"type": "sqlite", "up": up, "head": head},
        "streams": {"active": 1, "lagging": 0, "limit": 10, "behind_seconds": 0.5},
        "totals": dict.fromkeys(TOTALS, 2),
        "sources": [plain | source],
        "channels": [
            {"name": "orders", "listeners": 2, "published": 3, "delivered": 4, "from": [], "stale": False}
        ],
        "refusals": [refusal(at_ms=int(head.partition("-")[0]))],
    }


def test_a_source_is_shown_as_the_worker_that_reads_it_sees_it() -> None:
    """The others stand by, and know neither its lag nor its error."""
    reading = report("9-0", True, {"status": "down", "leader": True, "last_event_ms": 7})
    standing = report("10-0", True, {"status": "up", "leader": False})
    told = merge_status([standing, reading])
    assert told["sources"][0]["status"] == "down"
    assert told["sources"][0]["received"] == 2
    assert told["sources"][0]["rejected"] == {"bad_json": 2}
    assert told["sources"][0]["last_event_ms"] == 7
    assert told["broker"] == {"type": "sqlite", "up": True, "head": "10-0"}
    assert told["streams"] == {"active": 2, "lagging": 0, "limit": 20, "behind_seconds": 0.5}
    assert told["totals"] == dict.fromkeys(TOTALS, 4)
    assert [told["channels"][0][name] for name in ("listeners", "published", "delivered")] == [4, 6, 8]


def test_without_a_leader_the_worst_is_shown() -> None:
    """One worker that cannot reach the upstream is worth a look."""
    told = merge_status([report("1-0", True, {"status": "up"}), report("1-0", False, {"status": "down"})])
    assert told["sources"][0]["status"] == "down"
    assert told["broker"]["up"] is False


def test_no_worker_is_no_fault() -> None:
    """All of them may be starting."""
    assert merge_status([])["streams"]["active"] == 0
    assert merge_status([]).keys() == merge_status([report("1-0", True, {"status": "up"})]).keys()


def test_refusals_of_one_cause_are_one_and_the_newest_are_kept() -> None:
    """A page that every worker refuses is one page; the parent's own are among them."""
    one, two = report("10-0", True, {"status": "up"}), report("30-0", True, {"status": "up"})
    own = RecentError("admin", "missing_token", "no", client="127.0.0.1", times=1, at_ms=20)
    (both, guard) = merge_status([one, two], [own])["refusals"]
    assert (both["code"], both["times"], both["at_ms"]) == ("origin_refused", 4, 30)
    assert (guard["code"], guard["times"], guard["at_ms"]) == ("missing_token", 1, 20)
    many = [refusal(client=str(number), at_ms=number) for number in range(2 * MAX_ERRORS)]
    kept = merge_status([one | {"refusals": many}])["refusals"]
    assert [each["at_ms"] for each in kept] == list(range(2 * MAX_ERRORS - 1, MAX_ERRORS - 1, -1))


def test_a_webhook_is_stale_when_all_say_so() -> None:
    """Each worker hears the posts of its own connections only."""
    silent, busy = {"status": "up", "stale": True}, {"status": "up", "stale": False}
    assert (
        merge_status([report("1-0", True, silent), report("1-0", True, busy)])["sources"][0]["stale"] is False
    )
    assert merge_status([report("1-0", True, silent)] * 2)["sources"][0]["stale"] is True
    leading = silent | {"leader": True}
    assert (
        merge_status([report("1-0", True, busy), report("1-0", True, leading)])["sources"][0]["stale"] is True
    )
