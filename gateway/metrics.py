"""Every metric of the gateway, defined here and nowhere else.

Counters are incremented where things happen, through children that are looked up once; those of the hot
paths are bare tallies, because the library's lock costs more than what it counts. Gauges are never
incremented: they are read from the live objects at the scrape, so they cannot drift.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "sse_gateway_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series per counter that nobody asked for

Samples = Callable[[], Mapping[tuple[str, ...], float]]
Labels = tuple[tuple[str, str], ...]
Merge = Literal["sum", "min", "max"]
"""How the gauges of several workers become one; counters and histograms are added up."""


class Family(msgspec.Struct, frozen=True):
    """One metric with its samples: (name, labels, value)."""

    name: str
    type: str
    text: str
    merge: Merge
    samples: list[tuple[str, Labels, float]]


class Tally:
    """A counter without labels, for paths where every microsecond counts. Add to ``value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Read(Collector):
    """Gauges and tallies, whose values are asked for at the scrape."""

    def __init__(self) -> None:
        self.gauges: list[tuple[str, str, tuple[str, ...], Samples]] = []
        self.merge: dict[str, Merge] = {}
        self.tallies: list[tuple[str, str, Tally]] = []

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, text, tally in self.tallies:
            yield CounterMetricFamily(name, text, value=tally.value)
        for name, text, labels, samples in self.gauges:
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in samples().items():
                family.add_metric(values, value)
            yield family


class _Given(Collector):
    """Metrics that are there already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric


def render(families: Iterable[Family]) -> bytes:
    """Return metrics in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return generate_latest(registry)


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._read = _Read()
        self.registry.register(self._read)
        self._described: list[tuple[str, str, tuple[str, ...], str]] = []
        self.connections = self._tally("connections_total", "Streams opened")
        self.disconnects = self._counter("disconnects_total", "Streams ended, by reason", "reason")
        self.refused = self._counter("refused_total", "Subscriptions refused, by reason", "reason")
        self.connection_seconds = self._histogram(
            "connection_seconds", "Age of streams when they ended", (1, 10, 60, 300, 900, 1800, 3600, 7200)
        )
        self.events_received = self._counter(
            "events_received_total", "Records that sources yielded", "source"
        )
        self.events_rejected = self._counter(
            "events_rejected_total",
            "Records and posts that can never become events, by reason",
            "source",
            "reason",
        )
        self.events_published = self._counter(
            "events_published_total", "Events that this node appended to the log", "channel"
        )
        self.events_delivered = self._counter(
            "events_delivered_total", "Events written to streams, counted once per stream", "channel"
        )
        self.bytes_sent = self._tally("bytes_sent_total", "Bytes written to streams, framing included")
        self.delivery_lag = self._histogram(
            "delivery_lag_seconds",
            "From an event's id to the write to the socket; one sample per slice of a fan-out",
            (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.replayed = self._counter(
            "replayed_events_total", "Events written from history, to resuming or slow streams"
        )
        self.conflated = self._tally(
            "conflated_events_total",
            "Events that slow streams did not get, as a newer one of the same key followed",
        )
        self.gaps = self._counter("gaps_total", "Gaps told, by reason", "reason")
        self.broker_append = self._histogram(
            "broker_append_seconds",
            "Duration of one append to the broker",
            (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5),
        )
        self.canary_failures = self._tally(
            "canary_failures_total", "Canary events that did not come back through broker and hub in time"
        )
        self.jwks_fetches = self._counter(
            "jwks_fetches_total", "Fetches of issuers' keys, by result", "result"
        )
        self.forward_requests = self._counter(
            "forward_auth_total", "Questions to the forward auth endpoint, by result", "result"
        )
        self.tls_reloads = self._counter(
            "tls_reloads_total", "Changes of the certificate's files, by result: ok or failed", "result"
        )
        self.tls_handshake_failures = self._counter(
            "tls_handshake_failures_total",
            "TLS handshakes that failed, by reason: client_certificate, plain_http or protocol",
            "reason",
        )
        self.worker_restarts = self._counter(
            "worker_restarts_total", "Workers that were started again after their death"
        )
        self.log_dropped = self._counter(
            "log_lines_dropped_total", "Log lines lost because the reader was too slow"
        )

    def gauge(self, name: str, text: str, samples: Samples, *labels: str, merge: Merge = "sum") -> None:
        """Add a gauge that ``samples`` answers for: label values to value."""
        self._read.merge[PREFIX + name] = merge
        self._read.gauges.append((PREFIX + name, text, labels, samples))

    def value(self, name: str, text: str, read: Callable[[], float], *, merge: Merge = "sum") -> None:
        """Add a gauge without labels."""
        self.gauge(name, text, lambda: {(): read()}, merge=merge)

    def describe(self) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
        """Yield each metric's name, type, labels and help text, for the docs."""
        yield from self._described
        for name, text, labels, _ in self._read.gauges:
            yield name, "gauge", labels, text

    def families(self) -> list[Family]:
        """Return all metrics with their samples."""
        return [
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                self._read.merge.get(metric.name, "sum"),
                [(each.name, tuple(each.labels.items()), each.value) for each in metric.samples],
            )
            for metric in self.registry.collect()
        ]

    def _tally(self, name: str, text: str) -> Tally:
        self._described.append((PREFIX + name, "counter", (), text))
        tally = Tally()
        self._read.tallies.append((PREFIX + name, text, tally))
        return tally

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        self._described.append((PREFIX + name, "counter", labels, text))
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        self._described.append((PREFIX + name, "histogram", (), text))
        return Histogram(PREFIX + name, text, buckets=buckets, registry=self.registry)
