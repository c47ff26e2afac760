"""Metrics: one table that defines them, and their values in this process.

`definitions` has the name, help text and labels of each metric, and how the values of workers are merged.
Counters are incremented where the event happens; gauges read live objects at the scrape.
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
