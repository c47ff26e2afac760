"""What several workers tell, as one answer. Pure.

Counters only ever grow, also when a worker dies: what it had told by then stays in the sum. What it counted
since the last scrape dies with it, and nobody ever saw that.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.observability.metrics import Labels, MergeRule, MetricFamily
from gateway.observability.recent_errors import MAX_ERRORS, RecentError
from gateway.server.shutdown import PHASES

_COMBINE: dict[MergeRule, Callable[[float, float], float]] = {
    "sum": lambda a, b: a + b,
    "min": min,
    "max": max,
}
_STREAM_KEYS = ("active", "lagging", "limit")
_TOTAL_KEYS = (
    *("opened", "refused", "received", "rejected", "published", "delivered", "bytes_sent", "gaps"),
    *("lag_seconds", "lag_count"),
)
_CAUSE_KEYS = ("kind", "code", "source", "origin", "client")
_WORST_FIRST = ("down", "starting", "off", "up")


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


def merge_status(
    reports: Sequence[Mapping[str, Any]], parent_errors: Sequence[RecentError] = ()
) -> dict[str, Any]:
    """Return one ``/status`` of those of the workers, in their shape; ``own`` are the parent's refusals."""
    refusals = _merge_errors(
        [*(msgspec.structs.asdict(each) for each in parent_errors), *_chain_lists(reports, "refusals")]
    )
    if not reports:
        return {
            "phase": None,
            "broker": None,
            "streams": dict.fromkeys((*_STREAM_KEYS, "behind_seconds"), 0),
            "totals": dict.fromkeys(_TOTAL_KEYS, 0),
            "sources": [],
            "channels": [],
            "refusals": refusals,
        }
    first = reports[0]
    brokers = [report["broker"] for report in reports]
    return {
        "phase": min((report["phase"] for report in reports), key=PHASES.index),
        "broker": {
            **brokers[0],
            "up": all(broker["up"] for broker in brokers),
            "head": max((broker["head"] for broker in brokers), key=_parse_event_id),
        },
        "streams": {
            **{name: sum(report["streams"][name] for report in reports) for name in _STREAM_KEYS},
            "behind_seconds": max(report["streams"]["behind_seconds"] for report in reports),
        },
        "totals": {name: sum(report["totals"][name] for report in reports) for name in _TOTAL_KEYS},
        "sources": [
            _merge_source([report["sources"][number] for report in reports])
            for number in range(len(first["sources"]))
        ],
        "channels": [
            _merge_channel([report["channels"][number] for report in reports])
            for number in range(len(first["channels"]))
        ],
        "refusals": refusals,
    }


def _chain_lists(reports: Sequence[Mapping[str, Any]], key: str) -> Iterator[Mapping[str, Any]]:
    for report in reports:
        yield from report[key]


def _merge_errors(errors: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the newest, the same refusal of the same cause as one."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for each in sorted(errors, key=lambda refusal: refusal["at_ms"]):
        cause = tuple(each[name] for name in _CAUSE_KEYS)
        times = each["times"] + (found[cause]["times"] if cause in found else 0)
        found[cause] = {**each, "times": times}
    return sorted(found.values(), key=lambda refusal: -refusal["at_ms"])[:MAX_ERRORS]


def _parse_event_id(head: str) -> tuple[int, ...]:
    return tuple(int(part) for part in head.split("-"))


def _merge_source(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a source as the worker that reads it sees it, else as the one that is worst off."""
    leaders = [each for each in reports if each.get("leader")]
    shown = min(leaders or reports, key=lambda each: _WORST_FIRST.index(each["status"]))
    sums: dict[str, Any] = {
        name: sum(each[name] for each in reports) for name in ("received", "duplicates", "restarts")
    }
    rejected: Counter[str] = Counter()
    for each in reports:
        rejected.update(each["rejected"])
    sums["rejected"] = dict(rejected)
    last = max((each["last_event_ms"] for each in reports if each["last_event_ms"] is not None), default=None)
    # Without a reader for all, each hears the posts of its own connections only.
    stale = shown["stale"]
    if stale and not leaders:
        stale = all(each["stale"] for each in reports)
    return {**shown, **sums, "last_event_ms": last, "stale": stale}


def _merge_channel(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **reports[0],
        **{name: sum(each[name] for each in reports) for name in ("listeners", "published", "delivered")},
        "stale": any(each["stale"] for each in reports),
    }
