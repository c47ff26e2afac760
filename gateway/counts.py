"""What counters say now, for `/status`: the same numbers that the metrics tell."""

from collections.abc import Mapping

from prometheus_client.metrics import MetricWrapperBase


def by_label(counter: MetricWrapperBase) -> Mapping[str, int]:
    """Return a counter's values by the value of its one label."""
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def total(counter: MetricWrapperBase) -> int:
    """Return a counter's values, added up over its labels."""
    return sum(
        int(sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def sum_and_count(histogram: MetricWrapperBase) -> tuple[float, int]:
    """Return the sum of what a histogram without labels has seen, and how many times that was."""
    told = {sample.name.rpartition("_")[2]: sample.value for m in histogram.collect() for sample in m.samples}
    return told["sum"], int(told["count"])
