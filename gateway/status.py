"""What a node tells about itself: ready or not, `/status`, the gauges. Reads live parts, holds nothing."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway import __version__
from gateway.broker.base import Broker
from gateway.broker.memory import unix_ms
from gateway.broker.redis import RedisBroker
from gateway.config.catalog import Catalog
from gateway.counts import by_label, sum_and_count, total
from gateway.freshness import Freshness
from gateway.metrics import Family, Metrics
from gateway.refusals import Refusals
from gateway.sources.base import SourceState
from gateway.sources.supervisor import Supervisor
from gateway.stream.ending import Ending
from gateway.stream.streams import Streams


@dataclass(frozen=True, slots=True)
class Status:
    """The parts, and what is told of them."""

    metrics: Metrics
    names: Sequence[str]
    """All sources, in the order of the file."""
    broker: Broker
    streams: Streams
    catalog: Catalog
    supervisors: Mapping[str, Supervisor]
    off: Mapping[str, SourceState]
    freshness: Freshness
    ending: Ending
    limit: int
    refusals: Refusals
    development: bool
    started: float = field(default_factory=time.monotonic)

    def states(self) -> list[SourceState]:
        """Return the state of each source."""
        return [self.off[name] if name in self.off else self.supervisors[name].state for name in self.names]

    async def families(self) -> Sequence[Family]:
        """Return the metrics."""
        return self.metrics.families()

    async def alive(self) -> tuple[bool, Mapping[str, Any]]:
        """Return True: who answers lives."""
        return True, {}

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it.

        A source that is down does not make the node unready unless it is ``critical``: all nodes share
        their sources, and a balancer without a ready node answers browsers 503, which ends an
        EventSource for good.
        """
        parts: dict[str, Any] = {
            "draining": self.streams.is_draining,
            "broker": "up" if self.broker.is_up else "down",
            "sources": {
                state.name: state.status
                if state.last_error is None
                else f"{state.status}: {state.last_error}"
                for state in self.states()
            },
        }
        reasons = (["draining"] if self.streams.is_draining else []) + (
            ["broker"] if not self.broker.is_up else []
        )
        reasons += [
            f"source {state.name}"
            for state in self.states()
            if state.critical and state.status in ("starting", "down")
        ]
        reasons += self.freshness.failing()
        return not reasons, {"not_ready": reasons, **parts}

    def knows(self, channel: str) -> bool:
        """Tell whether a name is a channel's, or that of a template."""
        return self.catalog.knows(channel)

    async def end(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""
        return {"told": str(await self.ending.end(subject, channel))}

    async def report(self) -> Mapping[str, Any]:
        """Return what ``/status`` shows."""
        ready, parts = await self.ready()
        listeners = self.streams.by_channel()
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
            "broker": {"type": self.broker.type, "up": self.broker.is_up, "head": str(self.broker.head)},
            "streams": {
                "active": len(self.streams.open),
                "lagging": self.streams.lagging(),
                "limit": self.limit,
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
                    "listeners": int(listeners.get((name,), 0)),
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
            "restarts": state.restarts,
        }
        supervisor = self.supervisors.get(state.name)
        return told | {"leader": supervisor.is_leading} if supervisor and supervisor.reads_once else told

    def _lag(self, state: SourceState) -> float | None:
        """Return what waits upstream; only who reads knows."""
        supervisor = self.supervisors.get(state.name)
        return state.lag if supervisor is not None and supervisor.is_leading else None

    def _reads(self, name: str) -> bool:
        """Tell whether records of a source come here, so that its silence means something."""
        supervisor = self.supervisors.get(name)
        return supervisor is None or not supervisor.reads_once or supervisor.is_leading

    def add_gauges(self) -> None:
        """Define the gauges that read the live parts."""
        add, one = self.metrics.gauge, self.metrics.value
        one("workers", "Processes that serve streams", lambda: 1)
        one("active_connections", "Streams open now", lambda: len(self.streams.open))
        one("lagging_streams", "Streams that are behind the newest event", self.streams.lagging)
        one(
            "lag_seconds",
            "How far the stream that is furthest behind the newest event is behind it",
            self.streams.furthest,
            merge="max",
        )
        add("channel_connections", "Streams open now, by channel", self.streams.by_channel, "channel")
        add(
            "source_up",
            "1 while the source delivers, 0 while it does not",
            lambda: {(s.name,): float(s.status == "up") for s in self.states() if s.status != "off"},
            "source",
            merge="max",
        )
        add(
            "source_leader",
            "1 on the node that reads the source for all of them",
            lambda: {
                (name,): float(each.is_leading) for name, each in self.supervisors.items() if each.reads_once
            },
            "source",
            merge="max",
        )
        add(
            "source_last_event_timestamp_seconds",
            "Unix time of a source's last record",
            lambda: {(s.name,): s.last_event / 1000 for s in self.states() if s.last_event is not None},
            "source",
            merge="max",
        )
        add(
            "source_lag_records",
            "Records that wait upstream; on the node that reads, where the source can tell",
            lambda: {(s.name,): lag for s in self.states() if (lag := self._lag(s)) is not None},
            "source",
        )
        add(
            "source_stale",
            "1 while the source has been silent for longer than its stale_after; where it is read",
            lambda: {k: v for k, v in self.freshness.samples("source").items() if self._reads(k[0])},
            "source",
            merge="min",  # each worker hears the posts of its own connections only
        )
        add(
            "channel_stale",
            "1 while the channel has been silent for longer than its stale_after",
            lambda: self.freshness.samples("channel"),
            "channel",
            merge="max",
        )
        one(
            "broker_up", "1 while the event log can be reached", lambda: float(self.broker.is_up), merge="min"
        )
        if isinstance(self.broker, RedisBroker):
            connections = self.broker.connections
            one(
                "broker_connections",
                "Connections to Redis that serve a call just now",
                lambda: connections()[0],
            )
            one("broker_connections_open", "Connections to Redis, idle ones too", lambda: connections()[1])
        add(
            "build_info",
            "Always 1; the label tells the version",
            lambda: {(__version__,): 1.0},
            "version",
            merge="max",
        )
