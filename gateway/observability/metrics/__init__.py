"""What is counted and measured: one table that defines it, and the live values.

`definitions` is the only place where a metric gets its name, help, labels and the rule by which workers are
added up. Counters are incremented where things happen; gauges are bound to readers of the live parts.
"""

from gateway.observability.metrics.exposition import (
    CONTENT_TYPE,
    Family,
    Labels,
    Merge,
    in_turns,
    parts,
    render,
)
from gateway.observability.metrics.registry import Metrics, Tally

__all__ = ["CONTENT_TYPE", "Family", "Labels", "Merge", "Metrics", "Tally", "in_turns", "parts", "render"]
