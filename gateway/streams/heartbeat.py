"""The sweep of all streams: heartbeats, maximum age, and clients that stopped reading.

A stream is visited twice per heartbeat interval and gets a heartbeat if nothing was written to it since the
last visit: an idle stream is never silent for longer than the interval. Streams whose clients requested a
shorter interval get their heartbeats from `gateway.streams.short_heartbeats`, and everything else from here.
"""

import asyncio

from gateway.config.model.config import TimeoutsConfig
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.bucket_sweep import BucketSweep
from gateway.streams.connection import StreamConnection

BUCKETS = 32

VISITS_PER_INTERVAL = 2
"""Visits of each stream per heartbeat interval."""

HEARTBEAT_SENT = -1
"""As `StreamConnection.bytes_at_last_sweep`: the last visit wrote, so the next one need not."""


class HeartbeatSweep(BucketSweep[StreamConnection]):
    """Visits the open streams of this node."""

    def __init__(self, timeouts: TimeoutsConfig, background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        super().__init__("heartbeats", background, buckets=BUCKETS, tick_seconds=0.0)
        self.stalled: dict[StreamConnection, None] = {}
        """Streams whose transport has bytes left to write: paused, or closing."""
        self.reconfigure(timeouts)

    def reconfigure(self, timeouts: TimeoutsConfig) -> None:
        """Apply other timeouts, to open streams too."""
        self._write_timeout_seconds = timeouts.write
        self.tick_seconds = timeouts.heartbeat / VISITS_PER_INTERVAL / BUCKETS

    def close_if_expired(self, stream: StreamConnection, now: float, *, within: float) -> None:
        """Close a stream whose time is over, or schedule it if that comes ``within`` so many seconds."""
        left = stream.expires_at - now
        if left <= 0:
            stream.close(stream.expiry_reason)
        elif left < within:  # it is not visited again before then
            asyncio.get_running_loop().call_later(left, stream.close, stream.expiry_reason)

    def track_stalled(self, stream: StreamConnection) -> None:
        """Watch whether the client of a stream still reads; pair with a removal from `stalled`."""
        self.stalled[stream] = None
        stream.last_progress_at = asyncio.get_running_loop().time()
        stream.unread_bytes_at_progress = stream.unread_bytes()

    def _on_tick(self, now: float, late_seconds: float) -> None:
        for stream in list(self.stalled):
            try:
                self._abort_if_stalled(stream, now)
            except Exception as error:
                self._background.record_failure("heartbeats", error)
                self._on_visit_failed(stream)

    def _on_visit_failed(self, item: StreamConnection) -> None:
        item.abort("internal_error")

    def _visit(self, item: StreamConnection, now: float) -> None:
        self.close_if_expired(item, now, within=self.round_seconds)
        if item.close_reason is not None:
            return
        is_silent = item.total_bytes == item.bytes_at_last_sweep
        if is_silent and item.is_writable and item.short_heartbeat is None:
            item.send_heartbeat()
            item.bytes_at_last_sweep = HEARTBEAT_SENT
        else:
            item.bytes_at_last_sweep = item.total_bytes

    def _abort_if_stalled(self, stream: StreamConnection, now: float) -> None:
        unread = stream.unread_bytes()
        if unread < stream.unread_bytes_at_progress:
            stream.last_progress_at, stream.unread_bytes_at_progress = now, unread
        elif now - stream.last_progress_at >= self._write_timeout_seconds:
            stream.abort("write_timeout")
