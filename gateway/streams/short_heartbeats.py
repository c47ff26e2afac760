"""Heartbeats of streams whose clients asked for a shorter interval than the gateway's (``heartbeat=5s``).

Streams of this kind are dealt into slots of their own, and each tick visits one slot, as the sweep of all
streams does (`gateway.streams.heartbeat`): no stream has a timer, and without such a stream nothing ticks.
A stream is visited `VISITS_PER_INTERVAL` times in the shortest interval that a client may have. What it was sent since the
last visit counts from that visit on, so it is never silent for longer than its interval.
"""

import asyncio
from itertools import count
from typing import Protocol

import msgspec

from gateway.config.model.config import Config, TimeoutsConfig
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

BUCKETS = 16

VISITS_PER_INTERVAL = 4
"""Visits of each stream in the shortest interval."""

EARLY_ROUNDS = 1.5
"""Rounds of visits that a heartbeat is early, so that a late timer does not make it late."""


class HeartbeatOptions(msgspec.Struct, frozen=True):
    """What a client asked for. ``interval`` is in seconds; None: the gateway's own."""

    is_event: bool = False
    interval_seconds: float | None = None


DEFAULT_HEARTBEAT = HeartbeatOptions()
"""Of clients that asked for nothing."""


class ShortHeartbeat:
    """What is known of one such stream."""

    __slots__ = ("bucket", "bytes_at_last_visit", "last_sent_at", "last_visit_at", "requested_seconds")

    def __init__(self, asked: float) -> None:
        self.requested_seconds = asked
        """Seconds; what it gets is `ShortHeartbeatSweep.effective_seconds`."""
        self.bucket = 0
        self.bytes_at_last_visit = 0
        self.last_visit_at = 0.0
        self.last_sent_at = 0.0
        """When it was last sent something, at the earliest."""


class HeartbeatStream(Protocol):
    """What is needed of a stream."""

    short_heartbeat: ShortHeartbeat | None
    close_reason: str | None

    @property
    def is_writable(self) -> bool:
        """Whether it is neither closing nor paused."""

    @property
    def total_bytes(self) -> int:
        """Bytes so far."""

    def send_heartbeat(self) -> None:
        """Write a heartbeat."""


class ShortHeartbeatSweep:
    """The streams of this node that have a shorter interval. Needs a running loop once there is one."""

    def __init__(self, timeouts: TimeoutsConfig, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        self._background = background
        self._guarded_sweep = background.guard_callback("short_heartbeats", self._sweep)
        self._buckets: list[dict[HeartbeatStream, ShortHeartbeat]] = [{} for _ in range(BUCKETS)]
        self._count = 0
        self._bucket_numbers = count()
        self._next_bucket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick_at = 0.0
        self._set_bounds(timeouts)

    def __len__(self) -> int:
        return self._count

    def apply(self, config: Config) -> None:
        """Take the bounds of a configuration, also for open streams."""
        self._set_bounds(config.timeouts)

    def _set_bounds(self, timeouts: TimeoutsConfig) -> None:
        self._default_seconds = timeouts.heartbeat
        self._min_seconds = min(timeouts.heartbeat_minimum, timeouts.heartbeat)
        self._round_seconds = self._min_seconds / VISITS_PER_INTERVAL

    def effective_seconds(self, requested_seconds: float) -> float:
        """Return the seconds between two heartbeats of a silent stream whose client asked for so many."""
        return min(max(requested_seconds, self._min_seconds), self._default_seconds)

    def create_state(self, requested_seconds: float | None) -> ShortHeartbeat | None:
        """Return the state of a new stream; None where the sweep of all streams is enough."""
        if requested_seconds is None or self.effective_seconds(requested_seconds) >= self._default_seconds:
            return None
        return ShortHeartbeat(requested_seconds)

    def add(self, stream: HeartbeatStream, heartbeat: ShortHeartbeat) -> None:
        """Look after a stream, which was written to just now. Pair with `ends`."""
        loop = asyncio.get_running_loop()
        heartbeat.bytes_at_last_visit, heartbeat.last_visit_at = stream.total_bytes, loop.time()
        heartbeat.last_sent_at = heartbeat.last_visit_at
        heartbeat.bucket = next(self._bucket_numbers) % BUCKETS
        self._buckets[heartbeat.bucket][stream] = heartbeat
        self._count += 1
        if self._timer is None:
            self._next_tick_at = loop.time()
            self._schedule()

    def remove(self, stream: HeartbeatStream, heartbeat: ShortHeartbeat) -> None:
        """Look after a stream no more. Harmless when repeated."""
        if self._buckets[heartbeat.bucket].pop(stream, None) is not None:
            self._count -= 1

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._next_tick_at += self._round_seconds / BUCKETS
        self._timer = asyncio.get_running_loop().call_at(self._next_tick_at, self._guarded_sweep)

    def _sweep(self) -> None:
        if not self._count:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        self._next_tick_at = max(
            self._next_tick_at, now - self._round_seconds / BUCKETS
        )  # ticks that were missed are not made up for
        self._schedule()
        slot = self._buckets[self._next_bucket]
        self._next_bucket = (self._next_bucket + 1) % BUCKETS
        for stream, heartbeat in list(slot.items()):
            if stream.close_reason is None:
                try:
                    self._visit(stream, heartbeat, now)
                except Exception as error:  # the others want theirs
                    self._background.record_failure("short_heartbeats", error)

    def _visit(self, stream: HeartbeatStream, heartbeat: ShortHeartbeat, now: float) -> None:
        if stream.total_bytes != heartbeat.bytes_at_last_visit:
            heartbeat.bytes_at_last_visit, heartbeat.last_sent_at = (
                stream.total_bytes,
                heartbeat.last_visit_at,
            )
        heartbeat.last_visit_at = now
        is_due = now + EARLY_ROUNDS * self._round_seconds >= heartbeat.last_sent_at + self.effective_seconds(
            heartbeat.requested_seconds
        )
        if is_due and stream.is_writable:
            stream.send_heartbeat()
            heartbeat.bytes_at_last_visit, heartbeat.last_sent_at = stream.total_bytes, now
