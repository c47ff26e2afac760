"""What is counted and measured: one table that defines it, and the live values.

`definitions` is the only place where a metric gets its name, help, labels and the rule by which workers are
added up. Counters are incremented where things happen; gauges are bound to readers of the live parts.
"""

from gateway.observability.metrics.exposition import (
    METRICS_CONTENT_TYPE,
    Labels,
    MergeRule,
    MetricFamily,
    collect_cooperatively,
    render,
    render_in_parts,
)
from gateway.observability.metrics.registry import Metrics, PlainCounter

__all__ = [
    "METRICS_CONTENT_TYPE",
    "Labels",
    "MergeRule",
    "MetricFamily",
    "Metrics",
    "PlainCounter",
    "collect_cooperatively",
    "render",
    "render_in_parts",
]
