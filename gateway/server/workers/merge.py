"""What several workers tell, as one answer. Pure.

Counters only ever grow, also when a worker dies: what it had told by then stays in the sum. What it counted
since the last scrape dies with it, and nobody ever saw that.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.observability.metrics import Family, Labels, Merge
from gateway.observability.recent_errors import KEPT, Refusal
from gateway.server.shutdown import PHASES

_COMBINE: dict[Merge, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "min": min, "max": max}
_STREAMS = ("active", "lagging", "limit")
_TOTALS = (
    *("opened", "refused", "received", "rejected", "published", "delivered", "bytes_sent", "gaps"),
    *("lag_seconds", "lag_count"),
)
_CAUSE = ("kind", "code", "source", "origin", "client")
_WORST = ("down", "starting", "off", "up")


class Totals:
    """Metrics of all workers, those that are gone included."""

    def __init__(self) -> None:
        self._retired: list[Family] = []

    def retire(self, families: Sequence[Family]) -> None:
        """Keep the counters of a worker that is gone; its gauges went with it."""
        counters = [family for family in families if family.type != "gauge"]
        self._retired = merged([self._retired, counters])

    def with_retired(self, living: Iterable[Sequence[Family]]) -> list[Family]:
        """Return one family for each metric."""
        return merged([self._retired, *living])


def merged(all_of: Iterable[Sequence[Family]]) -> list[Family]:
    """Return the families by name, samples with the same labels combined as each family says."""
    kinds: dict[str, Family] = {}
    samples: dict[str, dict[tuple[str, Labels], float]] = {}
    for families in all_of:
        for family in families:
            kinds.setdefault(family.name, family)
            values = samples.setdefault(family.name, {})
            rule: Merge = family.merge if family.type == "gauge" else "sum"
            for name, labels, value in family.samples:
                key = (name, labels)
                values[key] = _COMBINE[rule](values[key], value) if key in values else value
    return [
        Family(
            family.name,
            family.type,
            family.text,
            family.merge,
            [(*key, value) for key, value in samples[name].items()],
        )
        for name, family in kinds.items()
    ]


def merged_status(reports: Sequence[Mapping[str, Any]], own: Sequence[Refusal] = ()) -> dict[str, Any]:
    """Return one ``/status`` of those of the workers, in their shape; ``own`` are the parent's refusals."""
    refusals = _refusals([*(msgspec.structs.asdict(each) for each in own), *_each(reports, "refusals")])
    if not reports:
        return {
            "phase": None,
            "broker": None,
            "streams": dict.fromkeys((*_STREAMS, "behind_seconds"), 0),
            "totals": dict.fromkeys(_TOTALS, 0),
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
            "head": max((broker["head"] for broker in brokers), key=_id_of),
        },
        "streams": {
            **{name: sum(report["streams"][name] for report in reports) for name in _STREAMS},
            "behind_seconds": max(report["streams"]["behind_seconds"] for report in reports),
        },
        "totals": {name: sum(report["totals"][name] for report in reports) for name in _TOTALS},
        "sources": [
            _source([report["sources"][number] for report in reports])
            for number in range(len(first["sources"]))
        ],
        "channels": [
            _channel([report["channels"][number] for report in reports])
            for number in range(len(first["channels"]))
        ],
        "refusals": refusals,
    }


def _each(reports: Sequence[Mapping[str, Any]], name: str) -> Iterator[Mapping[str, Any]]:
    for report in reports:
        yield from report[name]


def _refusals(told: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the newest, the same refusal of the same cause as one."""
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for each in sorted(told, key=lambda refusal: refusal["at_ms"]):
        cause = tuple(each[name] for name in _CAUSE)
        times = each["times"] + (found[cause]["times"] if cause in found else 0)
        found[cause] = {**each, "times": times}
    return sorted(found.values(), key=lambda refusal: -refusal["at_ms"])[:KEPT]


def _id_of(head: str) -> tuple[int, ...]:
    return tuple(int(part) for part in head.split("-"))


def _source(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a source as the worker that reads it sees it, else as the one that is worst off."""
    leaders = [each for each in told if each.get("leader")]
    shown = min(leaders or told, key=lambda each: _WORST.index(each["status"]))
    sums: dict[str, Any] = {
        name: sum(each[name] for each in told) for name in ("received", "duplicates", "restarts")
    }
    rejected: Counter[str] = Counter()
    for each in told:
        rejected.update(each["rejected"])
    sums["rejected"] = dict(rejected)
    last = max((each["last_event_ms"] for each in told if each["last_event_ms"] is not None), default=None)
    # Without a reader for all, each hears the posts of its own connections only.
    stale = shown["stale"]
    if stale and not leaders:
        stale = all(each["stale"] for each in told)
    return {**shown, **sums, "last_event_ms": last, "stale": stale}


def _channel(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        **told[0],
        **{name: sum(each[name] for each in told) for name in ("listeners", "published", "delivered")},
        "stale": any(each["stale"] for each in told),
    }
