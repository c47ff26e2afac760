"""Prometheus's text format, in parts that are made one at a time.

The library writes some 150,000 samples a second: a thousand channels would hold the event loop for 30 ms
if they were written in one go.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics.family import Family, Labels

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SAMPLES = 200
"""Samples in a part: about a millisecond and a half."""


class _Given(Collector):
    """One metric that is there already."""

    def __init__(self, family: Family, samples: Sequence[tuple[str, Labels, float]]) -> None:
        self._family = family
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        metric = Metric(self._family.name, self._family.text, self._family.type)
        for name, labels, value in self._samples:
            metric.add_sample(name, dict(labels), value)
        yield metric


def parts(families: Iterable[Family]) -> Iterator[bytes]:
    """Yield metrics in Prometheus's text format, a part at a time."""
    for family in families:
        first = family.samples[:SAMPLES]
        yield _written(family, first)
        head = len(_written(family, ()))  # HELP and TYPE stand once, before all samples of a metric
        for start in range(SAMPLES, len(family.samples), SAMPLES):
            yield _written(family, family.samples[start : start + SAMPLES])[head:]


def render(families: Iterable[Family]) -> bytes:
    """Return metrics in Prometheus's text format."""
    return b"".join(parts(families))


def _written(family: Family, samples: Sequence[tuple[str, Labels, float]]) -> bytes:
    return generate_latest(_Given(family, samples))
