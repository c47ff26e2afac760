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
from gateway.observability.background import UNCOUNTED, Background
from gateway.streams.connection import Connection
from gateway.streams.registry import SLOTS, Streams

VISITS = 2
"""Visits of each stream per heartbeat interval."""

BEATEN = -1
"""As `Connection.swept`: the last visit wrote, so the next one need not."""


class Sweep:
    """Owns the timer. Start it once; it ends with `stop`."""

    def __init__(self, streams: Streams, background: Background = UNCOUNTED) -> None:
        self._streams = streams
        self._background = background
        self._tick = background.guarded("heartbeats", self._sweep)
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _round(self) -> float:
        """Seconds between two visits of a stream."""
        return self._streams.timeouts.heartbeat / VISITS

    def start(self) -> None:
        """Begin to sweep. Needs a running loop."""
        self._timer = asyncio.get_running_loop().call_later(jittered(self._round / SLOTS, 0.1), self._tick)

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self.start()
        now = asyncio.get_running_loop().time()
        for stream in list(self._streams.stalled):
            self._alone(self._cut_if_stalled, stream, now)
        slot = self._streams.slots[self._next]
        self._next = (self._next + 1) % SLOTS
        for stream in list(slot):
            self._alone(self._visit, stream, now)

    def _alone(self, work: Callable[[Connection, float], None], stream: Connection, now: float) -> None:
        """Look after one stream; where that fails, end it rather than leave the others alone."""
        try:
            work(stream, now)
        except Exception as error:
            self._background.failed("heartbeats", error)
            stream.abort("internal_error")

    def _visit(self, stream: Connection, now: float) -> None:
        self._streams.expire(stream, now, within=self._round)
        if stream.closing is not None:
            return
        if stream.written == stream.swept and stream.can_take and stream.heartbeat is None:
            stream.beat()
            stream.swept = BEATEN
        else:
            stream.swept = stream.written

    def _cut_if_stalled(self, stream: Connection, now: float) -> None:
        left = stream.unread()
        if left < stream.left:
            stream.progress, stream.left = now, left
        elif now - stream.progress >= self._streams.timeouts.write:
            stream.abort("write_timeout")
