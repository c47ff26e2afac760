"""Renders metrics in Prometheus's text format, in small parts.

prometheus_client renders some 150,000 samples a second: a thousand channels would block the event loop for
30 ms if they were rendered at once.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Labels = tuple[tuple[str, str], ...]
MergeRule = Literal["sum", "min", "max"]
"""How the gauges of several workers are merged; counters and histograms are summed."""


class MetricFamily(msgspec.Struct, frozen=True):
    """One metric with its samples (name, labels, value), as workers send it to their parent."""

    name: str
    type: str
    text: str
    merge: MergeRule
    samples: list[tuple[str, Labels, float]]


T = TypeVar("T")


async def collect_cooperatively(work: Iterable[T]) -> list[T]:
    """Return all items of ``work``, and let the event loop run after each. Cancelling is safe."""
    done = []
    for piece in work:
        done.append(piece)
        await asyncio.sleep(0)
    return done


METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SAMPLES_PER_PART = 200
"""Samples in a part: rendering takes about 1.5 ms."""


class _StaticCollector(Collector):
    """Wraps collected samples for `generate_latest`."""

    def __init__(self, family: MetricFamily, samples: Sequence[tuple[str, Labels, float]]) -> None:
        self._family = family
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        metric = Metric(self._family.name, self._family.text, self._family.type)
        for name, labels, value in self._samples:
            metric.add_sample(name, dict(labels), value)
        yield metric


def render_in_parts(families: Iterable[MetricFamily]) -> Iterator[bytes]:
    """Yield metrics in Prometheus's text format, in parts of `SAMPLES_PER_PART`."""
    for family in families:
        first = family.samples[:SAMPLES_PER_PART]
        yield _render_family(family, first)
        head = len(_render_family(family, ()))  # HELP and TYPE are written once per metric
        for start in range(SAMPLES_PER_PART, len(family.samples), SAMPLES_PER_PART):
            yield _render_family(family, family.samples[start : start + SAMPLES_PER_PART])[head:]


def render(families: Iterable[MetricFamily]) -> bytes:
    """Return metrics in Prometheus's text format."""
    return b"".join(render_in_parts(families))


def _render_family(family: MetricFamily, samples: Sequence[tuple[str, Labels, float]]) -> bytes:
    return generate_latest(_StaticCollector(family, samples))
