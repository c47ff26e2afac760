"""One process's metrics: the counters and histograms of the table, and the gauges that were bound to readers.

Counters are incremented where things happen, through children that are looked up once; those of the hot
paths are bare tallies, because the library's lock costs more than what it counts. Gauges are never
incremented: they are read from the live objects at the scrape, so they cannot drift.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.observability.background import TaskName
from gateway.observability.metrics import process
from gateway.observability.metrics.definitions import BY_NAME, PREFIX, Definition
from gateway.observability.metrics.exposition import Family, in_turns

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series per counter that nobody asked for

Samples = Callable[[], Mapping[tuple[str, ...], float]]


class Tally:
    """A counter without labels, for paths where every microsecond counts. Add to ``value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Bound(Collector):
    """Metrics whose values are asked for at the scrape."""

    def __init__(self) -> None:
        self.readers: dict[str, Samples] = {}

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, samples in list(self.readers.items()):  # the loop turns meanwhile, and more may be bound
            defined = BY_NAME[name]
            kind = GaugeMetricFamily if defined.type == "gauge" else CounterMetricFamily
            family = kind(name, defined.text, labels=defined.labels)
            for values, value in samples().items():
                family.add_metric(values, float(value))  # a truth would be no number in a worker's JSON
            yield family


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bound = _Bound()
        self.registry.register(self._bound)
        for name, read in process.READERS.items():
            self._bind(BY_NAME[name], _single(read))
        self.connections = self._tally("connections_total")
        self.disconnects = self._counter("disconnects_total")
        self.refused = self._counter("refused_total")
        self.impatient_disconnects = self._tally("impatient_disconnects_total")
        self.oversized_disconnects = self._tally("oversized_disconnects_total")
        self.acks_missed = self._tally("acks_missed_total")
        self.acks = self._counter("acks_total")
        self.connection_seconds = self._histogram("connection_seconds")
        self.events_received = self._counter("events_received_total")
        self.events_rejected = self._counter("events_rejected_total")
        self.webhook_throttled = self._counter("webhook_throttled_total")
        self.webhook_unavailable = self._counter("webhook_unavailable_total")
        self.events_duplicate = self._counter("events_duplicate_total")
        self.events_published = self._counter("events_published_total")
        self.events_delivered = self._counter("events_delivered_total")
        self.bytes_sent = self._tally("bytes_sent_total")
        self.delivery_lag = self._histogram("delivery_lag_seconds")
        self.replayed = self._counter("replayed_events_total")
        self.conflated = self._tally("conflated_events_total")
        self.gaps = self._counter("gaps_total")
        self.broker_append = self._histogram("broker_append_seconds")
        self.config_reloads = self._counter("config_reloads_total")
        self.canary_failures = self._tally("canary_failures_total")
        self.background_failures = self._counter("background_failures_total")
        self.jwks_fetches = self._counter("jwks_fetches_total")
        self.forward_requests = self._counter("forward_auth_total")
        self.tls_reloads = self._counter("tls_reloads_total")
        self.tls_handshake_failures = self._counter("tls_handshake_failures_total")
        self.worker_restarts = self._counter("worker_restarts_total")
        self.log_dropped = self._counter("log_lines_dropped_total")

    def background_failed(self, name: TaskName) -> None:
        """Count an exception in a background task. Safe to call from any thread."""
        self.background_failures.labels(name).inc()

    def bind(self, name: str, read: Callable[[], float]) -> None:
        """Let ``read`` answer for a gauge without labels, in place of whoever did before.

        Raises LookupError if no such gauge is defined, ValueError if it has labels.
        """
        self._bind(_gauge(name), _single(read))

    def bind_each(self, name: str, samples: Samples, *labels: str) -> None:
        """Let ``samples`` answer for a gauge with these labels: label values to value.

        Raises LookupError if no such gauge is defined, ValueError if its labels are others.
        """
        self._bind(_gauge(name), samples, labels)

    @property
    def bound(self) -> frozenset[str]:
        """The full names of all metrics that somebody answers for."""
        return frozenset(self._bound.readers)

    def collect(self) -> Iterator[Family]:
        """Yield each metric with its samples. A gauge that nobody is bound to is left out."""
        for metric in self.registry.collect():
            defined = BY_NAME.get(metric.name) or BY_NAME[f"{metric.name}_total"]
            samples = [(each.name, tuple(each.labels.items()), each.value) for each in metric.samples]
            yield Family(metric.name, defined.type, defined.text, defined.merge, samples)

    async def families(self) -> list[Family]:
        """Return all metrics; the event loop turns after each of them. Cancelling is safe."""
        return await in_turns(self.collect())

    def _bind(self, defined: Definition, samples: Samples, labels: tuple[str, ...] = ()) -> None:
        if defined.labels != labels:
            raise ValueError(f"the labels of {defined.name} are {defined.labels}, not {labels}")
        self._bound.readers[defined.name] = samples

    def _tally(self, name: str) -> Tally:
        tally = Tally()
        self._bind(BY_NAME[PREFIX + name], lambda: {(): tally.value})
        return tally

    def _counter(self, name: str) -> Counter:
        defined = BY_NAME[PREFIX + name]
        counter = Counter(defined.name, defined.text, defined.labels, registry=self.registry)
        for value in defined.values:
            counter.labels(value)  # it is there at 0, or the first increment would be no increase
        return counter

    def _histogram(self, name: str) -> Histogram:
        defined = BY_NAME[PREFIX + name]
        return Histogram(defined.name, defined.text, buckets=defined.buckets, registry=self.registry)


def _single(read: Callable[[], float]) -> Samples:
    return lambda: {(): read()}


def _gauge(name: str) -> Definition:
    defined = BY_NAME.get(PREFIX + name)
    if defined is None or defined.type != "gauge":
        raise LookupError(f"no gauge {PREFIX + name} is defined")
    return defined
