"""The reading of PromQL that the tests of dashboard and alerts stand on."""

from pathlib import Path

import pytest

from tests.support.promql import faults, names, unknown

pytestmark = pytest.mark.extended


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        ("up", {"up"}, set()),
        ('rate(a_total{b="c{d}",e!~"f|g"}[5m])', {"a_total"}, {"b", "e"}),
        ("sum by (a, b) (x) > on (a) group_left (c) 0.5 * sum(y offset 10m)", {"x", "y"}, {"a", "b", "c"}),
        ("max(x) by (a) unless y == 0 and absent(z)", {"x", "y", "z"}, {"a"}),
        ("histogram_quantile(0.99, sum by (le) (rate(h_bucket[5m]))) > bool 1e3", {"h_bucket"}, {"le"}),
    ],
)
def test_metrics_and_labels_are_told_apart(expression: str, metrics: set[str], labels: set[str]) -> None:
    """What is taken for a function is never looked up."""
    assert names(expression) == (metrics, labels)


def test_what_nobody_has_is_found() -> None:
    """A renamed metric, a label of another metric, a histogram without its suffix, le of a sum."""
    assert unknown("sse_gateway_streams") == {"sse_gateway_streams"}
    assert unknown('sse_gateway_source_up{channel="x"}') == {"channel"}
    assert unknown("sum by (reason) (sse_gateway_active_connections)") == {"reason"}
    assert unknown("sse_gateway_delivery_lag_seconds") == {"sse_gateway_delivery_lag_seconds"}
    assert unknown("sum by (le) (sse_gateway_delivery_lag_seconds_sum)") == {"le"}
    assert unknown("sum by (job, le) (sse_gateway_delivery_lag_seconds_bucket)") == set()


def test_what_promtool_cannot_read_is_found(tmp_path: Path) -> None:
    """One broken query among many."""
    assert faults(["up", "sum(up"], tmp_path)
    assert not faults(["up", "sum(up)"], tmp_path)
