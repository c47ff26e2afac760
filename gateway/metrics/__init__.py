"""What is counted and measured: one table that defines it, and the live values.

`definitions` is the only place where a metric gets its name, help, labels and the rule by which workers are
added up. Counters are incremented where things happen; gauges are bound to readers of the live parts.
"""

from gateway.metrics.exposition import CONTENT_TYPE, parts, render
from gateway.metrics.family import Family, Labels, Merge
from gateway.metrics.metrics import Metrics, Tally
from gateway.metrics.turns import in_turns

__all__ = ["CONTENT_TYPE", "Family", "Labels", "Merge", "Metrics", "Tally", "in_turns", "parts", "render"]
