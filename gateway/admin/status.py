"""What a node tells about itself: ready or not, `/status`, the gauges. Reads live parts, holds nothing."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
from prometheus_client.metrics import MetricWrapperBase

from gateway import __version__
from gateway.broker.base import Broker
from gateway.broker.redis.broker import RedisBroker
from gateway.config.catalog import Catalog
from gateway.core.clock import unix_ms
from gateway.core.errors import NotFound
from gateway.hub.canary import Canary
from gateway.observability.background import Background
from gateway.observability.loop_lag import LoopLag
from gateway.observability.metrics import Family, Metrics
from gateway.observability.recent_errors import Refusals
from gateway.observability.staleness import Freshness
from gateway.sources.base import SourceState
from gateway.sources.manager import Upstreams
from gateway.streams.registry import Streams
from gateway.streams.revocation_bus import Ending

# What counters say now, for `/status`: the same numbers that the metrics tell.


def by_label(counter: MetricWrapperBase) -> Mapping[str, int]:
    """Return a counter's values by the value of its one label."""
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }


def total(counter: MetricWrapperBase) -> int:
    """Return a counter's values, added up over its labels."""
    return sum(
        int(sample.value)
        for metric in counter.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def sum_and_count(histogram: MetricWrapperBase) -> tuple[float, int]:
    """Return the sum of what a histogram without labels has seen, and how many times that was."""
    told = {sample.name.rpartition("_")[2]: sample.value for m in histogram.collect() for sample in m.samples}
    return told["sum"], int(told["count"])


Result = Literal["ok", "unchanged", "failed"]


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong with the file; line and column count from 1."""

    line: int
    column: int
    path: str
    message: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of one reload."""

    at_ms: int
    result: Result
    message: str
    errors: Sequence[Mistake] = ()
    changes: Sequence[str] = ()
    """What differs, and what that does, one line each."""
    ended: int = 0
    """Streams that had to end, on all workers."""


class Reloads(Protocol):
    """Reloads the configuration file: `gateway.server.reload.Reload`."""

    async def reload(self, why: str) -> Outcome:
        """Read the file again, and apply it. ``why`` is for the log."""

    def told(self) -> dict[str, Any]:
        """Return what ``/status`` shows of the configuration."""


class Lifecycle(Protocol):
    """How far a node has come: `gateway.server.shutdown.Shutdown`."""

    asked: asyncio.Event

    @property
    def phase(self) -> str:
        """Return the name of the current phase, ``starting`` at first."""


@dataclass(slots=True)
class Status:
    """The parts, and what is told of them."""

    metrics: Metrics
    broker: Broker
    streams: Streams
    catalog: Catalog
    upstreams: Upstreams
    freshness: Freshness
    ending: Ending
    shutdown: Lifecycle
    canary: Canary
    loop_lag: LoopLag
    refusals: Refusals
    development: bool
    background: Background
    reloads: Reloads | None = None
    """None where the configuration is not of a file, or a parent reloads it."""
    started: float = field(default_factory=time.monotonic)

    def states(self) -> list[SourceState]:
        """Return the state of each source, in the order of the file."""
        return self.upstreams.states()

    async def families(self) -> Sequence[Family]:
        """Return the metrics."""
        return await self.metrics.families()

    async def alive(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this should go on running: who answers lives, unless all is late for good."""
        if self.loop_lag.is_stuck:
            return False, {"late_for_seconds": round(self.loop_lag.late_for, 1)}
        return True, {}

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it.

        A source that is down does not make the node unready unless it is ``critical``: all nodes share
        their sources, and a balancer without a ready node answers browsers 503, which ends an
        EventSource for good.
        """
        parts: dict[str, Any] = {
            "draining": self.is_draining,
            "broker": "up" if self.broker.is_up else ": ".join(filter(None, ("down", self.broker.trouble))),
            "sources": {
                state.name: state.status
                if state.last_error is None
                else f"{state.status}: {state.last_error}"
                for state in self.states()
            },
        }
        reasons = self.not_ready()
        return not reasons, {"not_ready": reasons, **parts}

    @property
    def is_draining(self) -> bool:
        """Whether this node is about to end."""
        return self.shutdown.asked.is_set() or self.streams.is_draining

    @property
    def is_starting(self) -> bool:
        """Whether the public port does not accept connections yet."""
        return self.shutdown.phase == "starting"

    def not_ready(self) -> list[str]:
        """Return why new clients should not come here; nothing if they may."""
        reasons = ["draining"] if self.is_draining else ["starting"] if self.is_starting else []
        if not self.broker.is_up:
            reasons.append("broker")
        elif self.canary.fault is not None:  # else it is for want of a broker
            reasons.append(self.canary.fault)
        reasons += [
            f"source {state.name}"
            for state in self.states()
            if state.critical and state.status in ("starting", "down")
        ]
        reasons += [f"background task {fault}" for fault in self.background.faults()]
        return reasons + self.freshness.failing()

    def knows(self, channel: str) -> bool:
        """Tell whether a name is a channel's, or that of a template."""
        return self.catalog.knows(channel)

    async def end(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""
        return {"told": str(await self.ending.end(subject, channel))}

    async def reload(self) -> Outcome:
        """Read the configuration's file again. Raises NotFound where there is none."""
        if self.reloads is None:
            raise NotFound("there is no file to reload here")
        return await self.reloads.reload("POST /reload")

    async def report(self) -> Mapping[str, Any]:
        """Return what ``/status`` shows."""
        ready, parts = await self.ready()
        published, delivered = (
            by_label(self.metrics.events_published),
            by_label(self.metrics.events_delivered),
        )
        lag_seconds, lag_count = sum_and_count(self.metrics.delivery_lag)
        return {
            "version": __version__,
            "now_ms": unix_ms(),
            "development": self.development,
            "uptime_seconds": round(time.monotonic() - self.started, 1),
            "ready": ready,
            "not_ready": parts["not_ready"],
            "phase": self.shutdown.phase,
            "config": None if self.reloads is None else self.reloads.told(),
            "broker": {"type": self.broker.type, "up": self.broker.is_up, "head": str(self.broker.head)},
            "streams": {
                "active": len(self.streams.open),
                "lagging": self.streams.lagging(),
                "limit": self.streams.limit,
                "behind_seconds": self.streams.furthest(),
            },
            "totals": {
                "opened": self.metrics.connections.value,
                "refused": total(self.metrics.refused),
                "received": total(self.metrics.events_received),
                "rejected": total(self.metrics.events_rejected),
                "published": sum(published.values()),
                "delivered": sum(delivered.values()),
                "bytes_sent": self.metrics.bytes_sent.value,
                "gaps": total(self.metrics.gaps),
                "lag_seconds": round(lag_seconds, 6),
                "lag_count": lag_count,
            },
            "sources": [self._source(state) for state in self.states()],
            "channels": [
                {
                    "name": name,
                    "listeners": self.streams.listeners[name],
                    "published": published.get(name, 0),
                    "delivered": delivered.get(name, 0),
                    "from": [f"{route.source}: {route.topic}" for route in declared.spec.from_],
                    "stale": self.freshness.is_stale("channel", name),
                }
                for name, declared in self.catalog.declared.items()
            ],
            "refusals": [msgspec.structs.asdict(refusal) for refusal in self.refusals.newest()],
        }

    def _source(self, state: SourceState) -> dict[str, Any]:
        told = {
            "name": state.name,
            "type": state.type,
            "status": state.status,
            "since_ms": state.since,
            "last_event_ms": state.last_event,
            "last_error": state.last_error,
            "lag": self._lag(state),
            "stale": self.freshness.is_stale("source", state.name),
            "received": state.received,
            "rejected": state.rejected,
            "duplicates": state.duplicates,
            "restarts": state.restarts,
        }
        supervisor = self.upstreams.supervisors.get(state.name)
        return told | {"leader": supervisor.is_leading} if supervisor and supervisor.reads_once else told

    def _lag(self, state: SourceState) -> float | None:
        """Return what waits upstream; only who reads knows."""
        supervisor = self.upstreams.supervisors.get(state.name)
        return state.lag if supervisor is not None and supervisor.is_leading else None

    def _reads(self, name: str) -> bool:
        """Tell whether records of a source come here, so that its silence means something."""
        supervisor = self.upstreams.supervisors.get(name)
        return supervisor is None or not supervisor.reads_once or supervisor.is_leading

    def bind_gauges(self) -> None:
        """Let the live parts answer for their gauges."""
        one, each = self.metrics.bind, self.metrics.bind_each
        one("workers", lambda: 1)
        one("ready", lambda: not self.not_ready())
        one("draining", lambda: self.is_draining)
        one("active_connections", lambda: len(self.streams.open))
        one("connections_limit", lambda: self.streams.limit)
        one("lagging_streams", self.streams.lagging)
        one("lag_seconds", self.streams.furthest)
        each(
            "channel_connections",
            lambda: {(name,): self.streams.listeners[name] for name in self.catalog.declared},
            "channel",
        )
        each(
            "source_up",
            lambda: {(s.name,): s.status == "up" for s in self.states() if s.status != "off"},
            "source",
        )
        each(
            "source_leader",
            lambda: {(name,): s.is_leading for name, s in self.upstreams.supervisors.items() if s.reads_once},
            "source",
        )
        each(
            "source_last_event_timestamp_seconds",
            lambda: {(s.name,): s.last_event / 1000 for s in self.states() if s.last_event is not None},
            "source",
        )
        each(
            "source_lag_records",
            lambda: {(s.name,): lag for s in self.states() if (lag := self._lag(s)) is not None},
            "source",
        )
        each(
            "source_stale",
            lambda: {k: v for k, v in self.freshness.samples("source").items() if self._reads(k[0])},
            "source",
        )
        each("channel_stale", lambda: self.freshness.samples("channel"), "channel")
        one("broker_up", lambda: self.broker.is_up)
        if isinstance(self.broker, RedisBroker):
            connections = self.broker.connections
            one("broker_connections", lambda: connections()[0])
            one("broker_connections_open", lambda: connections()[1])
        one("canary_seconds", lambda: self.canary.seconds)
        one("loop_lag_seconds", lambda: self.loop_lag.worst)
        each("build_info", lambda: {(__version__,): 1}, "version")
