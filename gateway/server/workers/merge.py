"""The metrics of several workers as one set. Pure.

Counters only grow, also when a worker dies: its last scraped values stay in the sum. What it counted after
its last scrape was never exposed, and is lost.
"""

from collections.abc import Callable, Iterable, Sequence

from gateway.observability.metrics import Labels, MergeRule, MetricFamily

_COMBINE: dict[MergeRule, Callable[[float, float], float]] = {
    "sum": lambda a, b: a + b,
    "min": min,
    "max": max,
}


class MetricTotals:
    """Metrics of all workers, those that are gone included."""

    def __init__(self) -> None:
        self._retired: list[MetricFamily] = []

    def retire(self, families: Sequence[MetricFamily]) -> None:
        """Keep the counters of a worker that is gone; its gauges went with it."""
        counters = [family for family in families if family.type != "gauge"]
        self._retired = merge_families([self._retired, counters])

    def combine(self, living: Iterable[Sequence[MetricFamily]]) -> list[MetricFamily]:
        """Return one family for each metric."""
        return merge_families([self._retired, *living])


def merge_families(family_lists: Iterable[Sequence[MetricFamily]]) -> list[MetricFamily]:
    """Return the families by name, samples with the same labels combined as each family says."""
    kinds: dict[str, MetricFamily] = {}
    samples: dict[str, dict[tuple[str, Labels], float]] = {}
    for families in family_lists:
        for family in families:
            kinds.setdefault(family.name, family)
            values = samples.setdefault(family.name, {})
            rule: MergeRule = family.merge if family.type == "gauge" else "sum"
            for name, labels, value in family.samples:
                key = (name, labels)
                values[key] = _COMBINE[rule](values[key], value) if key in values else value
    return [
        MetricFamily(
            family.name,
            family.type,
            family.text,
            family.merge,
            [(*key, value) for key, value in samples[name].items()],
        )
        for name, family in kinds.items()
    ]
