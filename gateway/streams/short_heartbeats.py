"""Heartbeats of streams whose clients asked for a shorter interval than the gateway's (``heartbeat=5s``).

Streams of this kind are dealt into slots of their own, and each tick visits one slot, as the sweep of all
streams does (`gateway.streams.heartbeat`): no stream has a timer, and without such a stream nothing ticks.
A stream is visited `VISITS` times in the shortest interval that a client may have. What it was sent since the
last visit counts from that visit on, so it is never silent for longer than its interval.
"""

import asyncio
from itertools import count
from typing import Protocol

import msgspec

from gateway.config.model.config import Timeouts
from gateway.observability.background import UNCOUNTED, Background

SLOTS = 16

VISITS = 4
"""Visits of each stream in the shortest interval."""

AHEAD = 1.5
"""Rounds of visits that a heartbeat is early, so that a late timer does not make it late."""


class HeartbeatOptions(msgspec.Struct, frozen=True):
    """What a client asked for. ``interval`` is in seconds; None: the gateway's own."""

    as_events: bool = False
    interval: float | None = None


USUAL = HeartbeatOptions()
"""Of clients that asked for nothing."""


class ShortHeartbeat:
    """What is known of one such stream."""

    __slots__ = ("asked", "since", "slot", "visited", "written")

    def __init__(self, asked: float) -> None:
        self.asked = asked
        """Seconds; what it gets is `ShortHeartbeats.interval`."""
        self.slot = 0
        self.written = 0
        self.visited = 0.0
        self.since = 0.0
        """When it was last sent something, at the earliest."""


class Beating(Protocol):
    """What is needed of a stream."""

    heartbeat: ShortHeartbeat | None
    closing: str | None

    @property
    def can_take(self) -> bool:
        """Whether it is neither closing nor paused."""

    @property
    def written(self) -> int:
        """Bytes so far."""

    def beat(self) -> None:
        """Write a heartbeat."""


class ShortHeartbeats:
    """The streams of this node that have a shorter interval. Needs a running loop once there is one."""

    def __init__(self, timeouts: Timeouts, background: Background = UNCOUNTED) -> None:
        self._background = background
        self._tick = background.guarded("short_heartbeats", self._sweep)
        self._slots: list[dict[Beating, ShortHeartbeat]] = [{} for _ in range(SLOTS)]
        self._count = 0
        self._deal = count()
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.reconfigure(timeouts)

    def __len__(self) -> int:
        return self._count

    def reconfigure(self, timeouts: Timeouts) -> None:
        """Take other bounds, for streams that are open too."""
        self._usual = timeouts.heartbeat
        self._shortest = min(timeouts.heartbeat_minimum, timeouts.heartbeat)
        self._round = self._shortest / VISITS

    def interval(self, asked: float) -> float:
        """Return the seconds between two heartbeats of a silent stream whose client asked for so many."""
        return min(max(asked, self._shortest), self._usual)

    def of(self, asked: float | None) -> ShortHeartbeat | None:
        """Return the state of a new stream; None where the sweep of all streams is enough."""
        if asked is None or self.interval(asked) >= self._usual:
            return None
        return ShortHeartbeat(asked)

    def begins(self, stream: Beating, heartbeat: ShortHeartbeat) -> None:
        """Look after a stream, which was written to just now. Pair with `ends`."""
        loop = asyncio.get_running_loop()
        heartbeat.written, heartbeat.visited = stream.written, loop.time()
        heartbeat.since = heartbeat.visited
        heartbeat.slot = next(self._deal) % SLOTS
        self._slots[heartbeat.slot][stream] = heartbeat
        self._count += 1
        if self._timer is None:
            self._due = loop.time()
            self._schedule()

    def ends(self, stream: Beating, heartbeat: ShortHeartbeat) -> None:
        """Look after a stream no more. Harmless when repeated."""
        if self._slots[heartbeat.slot].pop(stream, None) is not None:
            self._count -= 1

    def stop(self) -> None:
        """End; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._due += self._round / SLOTS
        self._timer = asyncio.get_running_loop().call_at(self._due, self._tick)

    def _sweep(self) -> None:
        if not self._count:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - self._round / SLOTS)  # ticks that were missed are not made up for
        self._schedule()
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        for stream, heartbeat in list(slot.items()):
            if stream.closing is None:
                try:
                    self._visit(stream, heartbeat, now)
                except Exception as error:  # the others want theirs
                    self._background.failed("short_heartbeats", error)

    def _visit(self, stream: Beating, heartbeat: ShortHeartbeat, now: float) -> None:
        if stream.written != heartbeat.written:
            heartbeat.written, heartbeat.since = stream.written, heartbeat.visited
        heartbeat.visited = now
        is_due = now + AHEAD * self._round >= heartbeat.since + self.interval(heartbeat.asked)
        if is_due and stream.can_take:
            stream.beat()
            heartbeat.written, heartbeat.since = stream.written, now
