"""The metrics of several workers as one set."""

from gateway.observability.metrics import MergeRule, MetricFamily, Metrics, render
from gateway.server.workers.merge import MetricTotals, merge_families


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
