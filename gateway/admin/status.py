"""The status of a node: readiness, ``/status`` and the gauges, read from the live components."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from msgspec import UNSET
from prometheus_client.metrics import MetricWrapperBase

from gateway import __version__
from gateway.admin.app import ConfigReloader
from gateway.admin.status_report import (
    BrokerStatus,
    ChannelStatus,
    Phase,
    SourceStatus,
    StatusReport,
    StreamsStatus,
    TotalsStatus,
)
from gateway.broker.base import Broker
from gateway.broker.redis.broker import RedisBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.core.clock import unix_ms
from gateway.hub.canary import Canary
from gateway.observability.loop_lag import LoopLagMonitor
from gateway.observability.metrics import MetricFamily, Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.staleness import StalenessMonitor
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.sources.base import SourceState
from gateway.sources.manager import SourceManager
from gateway.streams.registry import StreamRegistry
from gateway.streams.revocation_bus import RevocationBus


def _counts(counter: MetricWrapperBase) -> list[tuple[Mapping[str, str], int]]:
    """Return the labels and the value of each of a counter's samples."""
    return [
        (sample.labels, int(sample.value))
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    ]


def counts_by_label(counter: MetricWrapperBase) -> Mapping[str, int]:
    """Return the values of a counter with one label, by that label."""
    return {next(iter(labels.values())): count for labels, count in _counts(counter)}


def counter_total(counter: MetricWrapperBase) -> int:
    """Return the sum of a counter over its labels."""
    return sum(count for _, count in _counts(counter))


def histogram_sum_and_count(histogram: MetricWrapperBase) -> tuple[float, int]:
    """Return the sum and the count of a histogram without labels."""
    values = {
        sample.name.rpartition("_")[2]: sample.value for m in histogram.collect() for sample in m.samples
    }
    return values["sum"], int(values["count"])


class Lifecycle(Protocol):
    """The phase of a node: `gateway.server.shutdown.Shutdown`."""

    requested: asyncio.Event

    @property
    def phase(self) -> Phase:
        """The current phase, ``starting`` at first."""


@dataclass(slots=True)
class NodeStatus:
    """The components of a node that its status is read from."""

    metrics: Metrics
    broker: Broker
    streams: StreamRegistry
    catalog: ChannelCatalog
    source_manager: SourceManager
    staleness_monitor: StalenessMonitor
    revocation_bus: RevocationBus
    shutdown: Lifecycle
    canary: Canary
    loop_lag: LoopLagMonitor
    recent_errors: RecentErrors
    is_development: bool
    background: TaskSupervisor
    reloader: ConfigReloader | None = None
    started_at: float = field(default_factory=time.monotonic)

    async def metric_families(self) -> Sequence[MetricFamily]:
        """Return the metrics."""
        return await self.metrics.families()

    async def liveness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the process should keep running: false once its event loop is stuck."""
        if self.loop_lag.is_stuck:
            return False, {"loop_lag_seconds": round(self.loop_lag.late_seconds, 1)}
        return True, {}

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should connect, and the state of what decides it.

        A source that is down does not make the node unready unless it is ``critical``: all nodes share their
        sources, and a load balancer without a ready node answers 503, after which an EventSource never
        reconnects.
        """
        details: dict[str, Any] = {
            "draining": self.is_draining,
            "broker": "up"
            if self.broker.is_up
            else ": ".join(filter(None, ("down", self.broker.last_error))),
            "sources": {
                state.name: state.status
                if state.last_error is None
                else f"{state.status}: {state.last_error}"
                for state in self.source_manager.states()
            },
        }
        reasons = self.unready_reasons()
        return not reasons, {"not_ready": reasons, **details}

    @property
    def is_draining(self) -> bool:
        """Whether the shutdown was requested."""
        return self.shutdown.requested.is_set() or self.streams.is_draining

    @property
    def is_starting(self) -> bool:
        """Whether the public port does not accept connections yet."""
        return self.shutdown.phase == "starting"

    def unready_reasons(self) -> list[str]:
        """Return why new clients should not connect; empty if they may."""
        reasons = ["draining"] if self.is_draining else ["starting"] if self.is_starting else []
        if not self.broker.is_up:
            reasons.append("broker")
        elif self.canary.fault is not None:  # while the log is unavailable, that is the reason
            reasons.append(self.canary.fault)
        reasons += [
            f"source {state.name}"
            for state in self.source_manager.states()
            if state.is_critical and state.status in ("starting", "down")
        ]
        reasons += [f"background task {fault}" for fault in self.background.failing_tasks()]
        return reasons + self.staleness_monitor.unready_reasons()

    async def end_streams(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""
        return {"event_id": str(await self.revocation_bus.revoke(subject, channel))}

    async def status_report(self) -> StatusReport:
        """Return what ``/status`` shows."""
        reasons, metrics = self.unready_reasons(), self.metrics
        published = counts_by_label(metrics.events_published)
        delivered = counts_by_label(metrics.events_delivered)
        lag_seconds, lag_count = histogram_sum_and_count(metrics.delivery_lag_seconds)
        return StatusReport(
            version=__version__,
            uptime_seconds=round(time.monotonic() - self.started_at, 1),
            now_ms=unix_ms(),
            ready=not reasons,
            not_ready=reasons,
            development=self.is_development,
            phase=self.shutdown.phase,
            config=None if self.reloader is None else self.reloader.config_status(),
            broker=BrokerStatus(self.broker.type, self.broker.is_up, str(self.broker.head)),
            streams=StreamsStatus(
                len(self.streams.active),
                self.streams.lagging_count(),
                self.streams.limit,
                self.streams.max_lag_seconds(),
            ),
            totals=TotalsStatus(
                opened=metrics.connections.value,
                refused=counter_total(metrics.refused),
                received=counter_total(metrics.events_received),
                rejected=counter_total(metrics.events_rejected),
                published=sum(published.values()),
                delivered=sum(delivered.values()),
                bytes_sent=metrics.bytes_sent.value,
                gaps=counter_total(metrics.gaps),
                lag_seconds=round(lag_seconds, 6),
                lag_count=lag_count,
            ),
            sources=[self._source_status(state) for state in self.source_manager.states()],
            channels=[
                ChannelStatus(
                    name,
                    [f"{route.source}: {route.topic}" for route in declared.config.from_],
                    self.streams.streams_per_channel[name],
                    published.get(name, 0),
                    delivered.get(name, 0),
                    self.staleness_monitor.is_stale("channel", name),
                )
                for name, declared in self.catalog.declared.items()
            ],
            recent_errors=self.recent_errors.list_newest(),
        )

    def _source_status(self, state: SourceState) -> SourceStatus:
        supervisor = self.source_manager.supervisors.get(state.name)
        return SourceStatus(
            name=state.name,
            type=state.type,
            status=state.status,
            since_ms=state.status_since_ms,
            last_event_ms=state.last_record_ms,
            last_error=state.last_error,
            lag=self._source_lag(state),
            stale=self.staleness_monitor.is_stale("source", state.name),
            received=state.received,
            rejected=state.rejected,
            duplicates=state.duplicates,
            restarts=state.restarts,
            leader=supervisor.has_lease if supervisor is not None and supervisor.is_exclusive else UNSET,
        )

    def _source_lag(self, state: SourceState) -> float | None:
        """Return how many records wait upstream; None unless this node reads them."""
        supervisor = self.source_manager.supervisors.get(state.name)
        return state.lag if supervisor is not None and supervisor.has_lease else None

    def _is_reading(self, name: str) -> bool:
        """Return whether this node receives the records of a source, so that silence means staleness."""
        supervisor = self.source_manager.supervisors.get(name)
        return supervisor is None or not supervisor.is_exclusive or supervisor.has_lease

    def bind_gauges(self) -> None:
        """Bind the gauges to the live components."""
        one, each = self.metrics.bind_gauge, self.metrics.bind_labeled_gauge
        one("workers", lambda: 1)
        one("ready", lambda: not self.unready_reasons())
        one("draining", lambda: self.is_draining)
        one("active_connections", lambda: len(self.streams.active))
        one("connections_limit", lambda: self.streams.limit)
        one("lagging_streams", self.streams.lagging_count)
        one("lag_seconds", self.streams.max_lag_seconds)
        each(
            "channel_connections",
            lambda: {(name,): self.streams.streams_per_channel[name] for name in self.catalog.declared},
            "channel",
        )
        each(
            "source_up",
            lambda: {(s.name,): s.status == "up" for s in self.source_manager.states() if s.status != "off"},
            "source",
        )
        each(
            "source_leader",
            lambda: {
                (name,): s.has_lease for name, s in self.source_manager.supervisors.items() if s.is_exclusive
            },
            "source",
        )
        each(
            "source_last_event_timestamp_seconds",
            lambda: {
                (s.name,): s.last_record_ms / 1000
                for s in self.source_manager.states()
                if s.last_record_ms is not None
            },
            "source",
        )
        each(
            "source_lag_records",
            lambda: {
                (s.name,): lag
                for s in self.source_manager.states()
                if (lag := self._source_lag(s)) is not None
            },
            "source",
        )
        each(
            "source_stale",
            lambda: {
                k: v
                for k, v in self.staleness_monitor.stale_samples("source").items()
                if self._is_reading(k[0])
            },
            "source",
        )
        each("channel_stale", lambda: self.staleness_monitor.stale_samples("channel"), "channel")
        one("broker_up", lambda: self.broker.is_up)
        if isinstance(self.broker, RedisBroker):
            connections = self.broker.count_connections
            one("broker_connections", lambda: connections()[0])
            one("broker_connections_open", lambda: connections()[1])
        one("canary_seconds", lambda: self.canary.round_trip_seconds)
        one("loop_lag_seconds", lambda: self.loop_lag.worst_lag_seconds)
        each("build_info", lambda: {(__version__,): 1}, "version")
