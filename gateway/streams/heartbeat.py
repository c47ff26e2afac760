"""One sweep for all streams: heartbeats, maximum age, and clients that take nothing.

Streams are dealt into slots and each tick visits one of them (with 15,000 streams, fewer than 500),
so the work is spread evenly and no stream has a timer. A stream is visited twice per heartbeat interval
and gets one if nothing was written to it since the last visit: an idle stream is never silent for
longer than the interval. Streams with a shorter interval of their own get their heartbeats from
`gateway.streams.short_heartbeats`, and all else from here.
"""

import asyncio
from collections.abc import Callable

from gateway.core.backoff import jittered
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.connection import StreamConnection
from gateway.streams.registry import SWEEP_BUCKETS, StreamRegistry

VISITS_PER_INTERVAL = 2
"""Visits of each stream per heartbeat interval."""

HEARTBEAT_SENT = -1
"""As `StreamConnection.bytes_at_last_sweep`: the last visit wrote, so the next one need not."""


class HeartbeatSweep:
    """Owns the timer. Start it once; it ends with `stop`."""

    def __init__(self, registry: StreamRegistry, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        self._registry = registry
        self._background = background
        self._guarded_sweep = background.guard_callback("heartbeats", self._sweep)
        self._next_bucket = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _round_seconds(self) -> float:
        """Seconds between two visits of a stream."""
        return self._registry.timeouts.heartbeat / VISITS_PER_INTERVAL

    def start(self) -> None:
        """Begin to sweep. Needs a running loop."""
        self._timer = asyncio.get_running_loop().call_later(
            jittered(self._round_seconds / SWEEP_BUCKETS, 0.1), self._guarded_sweep
        )

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self.start()
        now = asyncio.get_running_loop().time()
        for stream in list(self._registry.stalled):
            self._run_isolated(self._abort_if_stalled, stream, now)
        slot = self._registry.sweep_buckets[self._next_bucket]
        self._next_bucket = (self._next_bucket + 1) % SWEEP_BUCKETS
        for stream in list(slot):
            self._run_isolated(self._visit, stream, now)

    def _run_isolated(
        self, work: Callable[[StreamConnection, float], None], stream: StreamConnection, now: float
    ) -> None:
        """Look after one stream; where that fails, end it rather than leave the others alone."""
        try:
            work(stream, now)
        except Exception as error:
            self._background.record_failure("heartbeats", error)
            stream.abort("internal_error")

    def _visit(self, stream: StreamConnection, now: float) -> None:
        self._registry.close_if_expired(stream, now, within=self._round_seconds)
        if stream.close_reason is not None:
            return
        if (
            stream.total_bytes == stream.bytes_at_last_sweep
            and stream.is_writable
            and stream.short_heartbeat is None
        ):
            stream.send_heartbeat()
            stream.bytes_at_last_sweep = HEARTBEAT_SENT
        else:
            stream.bytes_at_last_sweep = stream.total_bytes

    def _abort_if_stalled(self, stream: StreamConnection, now: float) -> None:
        left = stream.unread_bytes()
        if left < stream.unread_bytes_at_progress:
            stream.last_progress_at, stream.unread_bytes_at_progress = now, left
        elif now - stream.last_progress_at >= self._registry.timeouts.write:
            stream.abort("write_timeout")
