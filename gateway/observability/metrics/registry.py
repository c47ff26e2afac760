"""The metrics of one process.

Counters are incremented where the event happens; on hot paths they are a `PlainCounter`, because
prometheus_client's lock costs more than the counted work (fanout, storm). Gauges are read from live objects
at the scrape, so they cannot drift.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.observability.metrics import process
from gateway.observability.metrics.definitions import DEFINITIONS_BY_NAME, METRIC_PREFIX, MetricDefinition
from gateway.observability.metrics.exposition import MetricFamily, collect_cooperatively
from gateway.observability.task_supervisor import TaskName

disable_created_metrics()  # type: ignore[no-untyped-call]  # an extra series for each counter

SampleReader = Callable[[], Mapping[tuple[str, ...], float]]


class PlainCounter:
    """A counter without labels and lock, for hot paths (fanout, storm). Add to ``value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _ReaderCollector(Collector):
    """Metrics whose values are read at the scrape."""

    def __init__(self) -> None:
        self.readers: dict[str, SampleReader] = {}

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, samples in list(self.readers.items()):  # the loop runs in between, and more may be bound
            defined = DEFINITIONS_BY_NAME[name]
            kind = GaugeMetricFamily if defined.type == "gauge" else CounterMetricFamily
            family = kind(name, defined.help_text, labels=defined.labels)
            for values, value in samples().items():
                family.add_metric(values, float(value))  # a bool would not be a number in a worker's JSON
            yield family


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._reader_collector = _ReaderCollector()
        self.registry.register(self._reader_collector)
        for name, read in process.PROCESS_GAUGE_READERS.items():
            self._bind_reader(DEFINITIONS_BY_NAME[name], _unlabeled(read))
        self.connections = self._plain_counter("connections_total")
        self.disconnects = self._counter("disconnects_total")
        self.refused = self._counter("refused_total")
        self.impatient_disconnects = self._plain_counter("client_timeout_disconnects_total")
        self.oversized_disconnects = self._plain_counter("large_event_disconnects_total")
        self.acks_missed = self._plain_counter("acks_missed_total")
        self.acks = self._counter("acks_total")
        self.connection_seconds = self._histogram("connection_seconds")
        self.events_received = self._counter("events_received_total")
        self.events_rejected = self._counter("events_rejected_total")
        self.webhook_throttled = self._counter("webhook_throttled_total")
        self.webhook_unavailable = self._counter("webhook_unavailable_total")
        self.events_duplicate = self._counter("events_duplicate_total")
        self.events_published = self._counter("events_published_total")
        self.events_delivered = self._counter("events_delivered_total")
        self.bytes_sent = self._plain_counter("bytes_sent_total")
        self.delivery_lag_seconds = self._histogram("delivery_lag_seconds")
        self.replayed_events = self._counter("replayed_events_total")
        self.conflated_events = self._plain_counter("conflated_events_total")
        self.gaps = self._counter("gaps_total")
        self.broker_append_seconds = self._histogram("broker_append_seconds")
        self.config_reloads = self._counter("config_reloads_total")
        self.canary_failures = self._plain_counter("canary_failures_total")
        self.background_failures = self._counter("background_failures_total")
        self.jwks_fetches = self._counter("jwks_fetches_total")
        self.forward_auth = self._counter("forward_auth_total")
        self.tls_reloads = self._counter("tls_reloads_total")
        self.tls_handshake_failures = self._counter("tls_handshake_failures_total")
        self.worker_restarts = self._counter("worker_restarts_total")
        self.log_lines_dropped = self._counter("log_lines_dropped_total")

    def count_background_failure(self, name: TaskName) -> None:
        """Count an exception in a background task. Safe to call from any thread."""
        self.background_failures.labels(name).inc()

    def bind_gauge(self, name: str, read: Callable[[], float]) -> None:
        """Read a gauge without labels from ``read``, which replaces an earlier reader.

        Raises LookupError if no such gauge is defined, ValueError if it has labels.
        """
        self._bind_reader(_gauge_definition(name), _unlabeled(read))

    def bind_labeled_gauge(self, name: str, samples: SampleReader, *labels: str) -> None:
        """Read a gauge with these labels from ``samples``, which returns values by label values.

        Raises LookupError if no such gauge is defined, ValueError if its labels are others.
        """
        self._bind_reader(_gauge_definition(name), samples, labels)

    @property
    def bound_names(self) -> frozenset[str]:
        """The full names of all metrics that have a reader."""
        return frozenset(self._reader_collector.readers)

    def collect(self) -> Iterator[MetricFamily]:
        """Yield each metric with its samples; gauges without a reader are left out."""
        for metric in self.registry.collect():
            defined = DEFINITIONS_BY_NAME.get(metric.name) or DEFINITIONS_BY_NAME[f"{metric.name}_total"]
            samples = [(each.name, tuple(each.labels.items()), each.value) for each in metric.samples]
            yield MetricFamily(metric.name, defined.type, defined.help_text, defined.merge_rule, samples)

    async def families(self) -> list[MetricFamily]:
        """Return all metrics, and let the event loop run after each. Cancelling is safe."""
        return await collect_cooperatively(self.collect())

    def _bind_reader(
        self, defined: MetricDefinition, samples: SampleReader, labels: tuple[str, ...] = ()
    ) -> None:
        if defined.labels != labels:
            raise ValueError(f"the labels of {defined.name} are {defined.labels}, not {labels}")
        self._reader_collector.readers[defined.name] = samples

    def _plain_counter(self, name: str) -> PlainCounter:
        counter = PlainCounter()
        self._bind_reader(DEFINITIONS_BY_NAME[METRIC_PREFIX + name], lambda: {(): counter.value})
        return counter

    def _counter(self, name: str) -> Counter:
        defined = DEFINITIONS_BY_NAME[METRIC_PREFIX + name]
        counter = Counter(defined.name, defined.help_text, defined.labels, registry=self.registry)
        for value in defined.label_values:
            counter.labels(value)  # the series starts at 0, or rate() would miss the first increment
        return counter

    def _histogram(self, name: str) -> Histogram:
        defined = DEFINITIONS_BY_NAME[METRIC_PREFIX + name]
        return Histogram(defined.name, defined.help_text, buckets=defined.buckets, registry=self.registry)


def _unlabeled(read: Callable[[], float]) -> SampleReader:
    return lambda: {(): read()}


def _gauge_definition(name: str) -> MetricDefinition:
    defined = DEFINITIONS_BY_NAME.get(METRIC_PREFIX + name)
    if defined is None or defined.type != "gauge":
        raise LookupError(f"no gauge {METRIC_PREFIX + name} is defined")
    return defined
