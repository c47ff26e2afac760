"""Heartbeats of streams whose clients requested a shorter interval than the default (``heartbeat=5s``).

A stream is visited `VISITS_PER_INTERVAL` times in the shortest interval that a client may have. Bytes written
since the last visit count from that visit on, so a stream is never silent for longer than its interval.
"""

import asyncio
from typing import Protocol

import msgspec

from gateway.config.model.config import TimeoutsConfig
from gateway.hub.audience import Stream
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.bucket_sweep import BucketSweep

BUCKETS = 16

VISITS_PER_INTERVAL = 4
"""Visits of each stream in the shortest interval."""

EARLY_ROUNDS = 1.5
"""Rounds of visits by which a heartbeat is early, so that a late timer does not make it late."""


class HeartbeatOptions(msgspec.Struct, frozen=True):
    """What a client requested: heartbeats as events; an interval in seconds (None: the default)."""

    is_event: bool = False
    interval_seconds: float | None = None


DEFAULT_HEARTBEAT = HeartbeatOptions()
"""Of clients that requested nothing."""


class ShortHeartbeat:
    """The heartbeat state of one such stream."""

    __slots__ = ("bytes_at_last_visit", "last_sent_at", "last_visit_at", "requested_seconds")

    def __init__(self, requested_seconds: float) -> None:
        self.requested_seconds = requested_seconds
        """Seconds; the interval in force is `ShortHeartbeatSweep.effective_seconds`."""
        self.bytes_at_last_visit = 0
        self.last_visit_at = 0.0
        self.last_sent_at = 0.0
        """The earliest time at which the last bytes may have been written."""


class HeartbeatStream(Stream, Protocol):
    """What is needed of a stream."""

    short_heartbeat: ShortHeartbeat | None

    @property
    def total_bytes(self) -> int:
        """Bytes so far."""

    def send_heartbeat(self) -> None:
        """Write a heartbeat."""


class ShortHeartbeatSweep(BucketSweep[HeartbeatStream]):
    """Visits the streams of this node that have a shorter interval."""

    def __init__(self, timeouts: TimeoutsConfig, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        super().__init__("short_heartbeats", background, buckets=BUCKETS, tick_seconds=0.0)
        self.reconfigure(timeouts)

    def reconfigure(self, timeouts: TimeoutsConfig) -> None:
        """Apply other bounds, to open streams too."""
        self._default_seconds = timeouts.heartbeat
        self._min_seconds = min(timeouts.heartbeat_minimum, timeouts.heartbeat)
        self.tick_seconds = self._min_seconds / VISITS_PER_INTERVAL / BUCKETS

    def effective_seconds(self, requested_seconds: float) -> float:
        """Return the seconds between two heartbeats of a silent stream whose client requested so many."""
        return min(max(requested_seconds, self._min_seconds), self._default_seconds)

    def create_state(self, requested_seconds: float | None) -> ShortHeartbeat | None:
        """Return the state of a new stream; None where the sweep of all streams is enough."""
        if requested_seconds is None or self.effective_seconds(requested_seconds) >= self._default_seconds:
            return None
        return ShortHeartbeat(requested_seconds)

    def add(self, item: HeartbeatStream) -> None:
        """Visit a stream, which was written to just now. Pair with `remove`."""
        heartbeat = item.short_heartbeat
        assert heartbeat is not None
        heartbeat.bytes_at_last_visit = item.total_bytes
        heartbeat.last_visit_at = heartbeat.last_sent_at = asyncio.get_running_loop().time()
        super().add(item)

    def _visit(self, item: HeartbeatStream, now: float) -> None:
        heartbeat = item.short_heartbeat
        if item.close_reason is not None or heartbeat is None:
            return
        if item.total_bytes != heartbeat.bytes_at_last_visit:
            heartbeat.bytes_at_last_visit = item.total_bytes
            heartbeat.last_sent_at = heartbeat.last_visit_at
        heartbeat.last_visit_at = now
        due_at = heartbeat.last_sent_at + self.effective_seconds(heartbeat.requested_seconds)
        if now + EARLY_ROUNDS * self.round_seconds >= due_at and item.is_writable:
            item.send_heartbeat()
            heartbeat.bytes_at_last_visit, heartbeat.last_sent_at = item.total_bytes, now
