"""Binding gauges, collecting, and the text format in parts."""

import asyncio
import os
import resource
import time
from collections.abc import Iterable, Iterator

import msgspec
import pytest
from prometheus_client import generate_latest
from prometheus_client.core import Metric

from gateway.observability.metrics import (
    MetricFamily,
    Metrics,
    collect_cooperatively,
    render,
    render_in_parts,
)
from gateway.observability.metrics.exposition import SAMPLES_PER_PART


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values."""
    return {
        (name, *(value for _, value in labels)): number
        for family in metrics.collect()
        for name, labels, number in family.samples
    }


def test_only_what_is_defined_can_be_bound() -> None:
    """A name that the table does not have would be in no document, dashboard or test."""
    metrics = Metrics()
    with pytest.raises(LookupError, match="no gauge sse_gateway_streams is defined"):
        metrics.bind_gauge("streams", lambda: 1)
    with pytest.raises(LookupError, match="connections_total"):
        metrics.bind_gauge("connections_total", lambda: 1)
    with pytest.raises(ValueError, match="labels of sse_gateway_source_up are"):
        metrics.bind_gauge("source_up", lambda: 1)
    with pytest.raises(ValueError, match=r"not \('channel',\)"):
        metrics.bind_labeled_gauge("source_up", dict, "channel")


def test_a_gauge_is_read_at_the_scrape() -> None:
    """What is stored can be old; what nobody is bound to is not there, rather than 0."""
    metrics = Metrics()
    streams = [1, 2]
    assert ("sse_gateway_active_connections",) not in values(metrics)
    metrics.bind_gauge("active_connections", lambda: len(streams))
    streams.append(3)
    assert values(metrics)["sse_gateway_active_connections",] == 3
    metrics.bind_gauge("active_connections", lambda: 7)  # another part took its place
    assert values(metrics)["sse_gateway_active_connections",] == 7


def test_binding_during_a_scrape_does_not_end_it() -> None:
    """A scrape takes many turns of the loop, and a reload may fall between two of them."""
    metrics = Metrics()
    families = metrics.collect()
    next(families)
    metrics.bind_gauge("active_connections", lambda: 1)
    assert len(list(families)) > 20


def test_a_worker_can_tell_its_parent() -> None:
    """What does not come through JSON as it was is lost with the whole scrape."""
    metrics = Metrics()
    metrics.bind_gauge("ready", lambda: True)
    metrics.bind_labeled_gauge("source_up", lambda: {("app",): False}, "source")
    families = list(metrics.collect())
    assert msgspec.json.decode(msgspec.json.encode(families), type=list[MetricFamily]) == families


def test_counters_begin_at_nothing() -> None:
    """rate() sees no increase in a series that appears with its first increment."""
    found = values(Metrics())
    assert found["sse_gateway_refused_total", "overloaded"] == 0
    assert found["sse_gateway_config_reloads_total", "failed"] == 0
    assert found["sse_gateway_connections_total",] == 0


def test_process_metrics_are_exported() -> None:
    """Memory, CPU, descriptors and the start are what the kernel says."""
    before = values(Metrics())
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
    try:
        after = values(Metrics())
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert after["process_open_fds",] - before["process_open_fds",] == 50
    assert after["process_max_fds",] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    ratio = after["process_open_fds",] / after["process_max_fds",]
    assert after["sse_gateway_descriptor_usage_ratio",] == pytest.approx(ratio)
    assert 10e6 < after["process_resident_memory_bytes",] < 10e9
    assert 0 < after["process_cpu_seconds_total",] <= time.process_time()
    assert time.time() - 86400 < after["process_start_time_seconds",] <= time.time() + 1
    assert after["process_start_time_seconds",] == before["process_start_time_seconds",]


def test_parts_are_what_the_library_writes_in_one_go() -> None:
    """HELP and TYPE stand once, whatever the number of samples."""
    metrics = Metrics()
    for number in range(3 * SAMPLES_PER_PART + 1):
        metrics.events_delivered.labels(f"channel {number}").inc(number)
    families = list(metrics.collect())

    class Whole:
        def collect(self) -> Iterator[Metric]:
            for family in families:
                metric = Metric(family.name, family.text, family.type)
                for name, labels, value in family.samples:
                    metric.add_sample(name, dict(labels), value)
                yield metric

    assert render(families) == generate_latest(Whole())
    assert max(part.count(b"\n") for part in render_in_parts(families)) <= SAMPLES_PER_PART + 2


async def test_the_loop_turns_between_two_pieces_of_work() -> None:
    """A scrape must not hold up the streams."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def work() -> Iterable[int]:
        for _ in range(10):
            yield turns

    task = asyncio.create_task(other())
    assert await collect_cooperatively(work()) == list(range(10))
    task.cancel()
