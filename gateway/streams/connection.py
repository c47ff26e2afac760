"""One client's stream: the protocol object that its transport talks to once aiohttp has let go.

There is no task, no timer and no queue per stream. What is written goes straight to the transport; a
transport that is full pauses the stream, which leaves its audience with a cursor; one that
drained brings it back through `Replay`. Every write holds whole events, so wherever the stream ends,
it ends between two of them.
"""

import asyncio
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ
from typing import Protocol, cast

from gateway.core.event import EventId
from gateway.core.sse import HEARTBEAT, LAST_CHUNK, chunk, control_block
from gateway.hub.audience import Audience
from gateway.hub.encoded_event import Entry
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.streams.acks.state import Asked
from gateway.streams.quotas.quota import Hold
from gateway.streams.reconnects import Reconnects
from gateway.streams.short_heartbeats import ShortHeartbeat

HIGH_WATER = 0
"""Bytes in a transport's own buffer above which its stream pauses: see `gateway.hub.audience` on files."""

HIGH_WATER_TLS = 32 * 1024
"""The same for TLS, which always holds something."""

MAX_INPUT = 64 * 1024
"""Bytes that a client may send on its stream, where nothing is expected, before it is cut."""

_EVENT = control_block("stream.heartbeat", {})
# By (the client asked for events, the stream is chunked).
_HEARTBEATS = {
    (False, False): HEARTBEAT,
    (False, True): chunk(HEARTBEAT),
    (True, False): _EVENT,
    (True, True): chunk(_EVENT),
}


class StreamOwner(Protocol):
    """Counts a stream and reacts to its transport: `gateway.streams.registry.Streams`."""

    metrics: Metrics
    reconnects: Reconnects

    def close_block(self, reason: str, id: EventId | None = None) -> bytes:
        """Return the ``stream.close`` that ends a stream."""

    def pauses(self, stream: "Connection") -> None:
        """Take a stream whose socket is full out of its audience."""

    def resumes(self, stream: "Connection") -> None:
        """Continue a stream whose socket has room again."""

    def closes(self, stream: "Connection") -> None:
        """Remove a stream that ends; its transport may still be open."""

    def lost(self, stream: "Connection") -> None:
        """Remove a stream whose connection is gone."""


class Connection(asyncio.Protocol):
    """A stream from the handover to the last byte. `Streams` makes, sweeps and counts them."""

    __slots__ = (
        "_owner",
        "asked",
        "audience",
        "began",
        "bytes",
        "closing",
        "cursor",
        "events",
        "events_as_heartbeat",
        "expires",
        "expiry",
        "heartbeat",
        "hold",
        "id",
        "is_behind",
        "left",
        "opened",
        "origin",
        "paused",
        "progress",
        "received",
        "resumed",
        "seat",
        "since",
        "slot",
        "subscription",
        "swept",
        "told",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(
        self,
        owner: StreamOwner,
        id: str,
        subscription: Subscription,
        cursor: EventId,
        began: EventId,
        hold: Hold,
        *,
        heartbeat_events: bool,
        heartbeat: ShortHeartbeat | None = None,
    ) -> None:
        self._owner = owner
        self.id = id
        self.subscription = subscription
        self.cursor = cursor
        self.began = began
        self.hold = hold
        self.events_as_heartbeat = heartbeat_events
        self.heartbeat = heartbeat  # None: it has the gateway's own interval
        self.asked: Asked | None = None
        self.audience: Audience | None = None
        self.told: dict[str, EventId] = {}
        self.is_behind = False
        self.paused = False
        self.closing: str | None = None  # the reason, once there is one
        self.events = 0
        self.bytes = 0
        self.swept = -1  # bytes written at the last visit of the sweep; -1: it, or the opening, wrote
        self.resumed = False  # whether it began after an id that its client named
        self.seat = 0
        self.since = (0, 0)
        self.received = 0
        self.opened = 0.0
        self.expires = 0.0
        self.expiry = "max_age"  # the reason for which it ends then
        self.origin: str | None = None  # of the page that opened it
        self.progress = 0.0  # when the transport last took something, while it is full
        self.left = 0  # bytes in its buffer then
        self.slot = 0

    @property
    def can_take(self) -> bool:
        """Whether it is neither closing nor paused."""
        return self.closing is None and not self.paused

    @property
    def fd(self) -> int:
        """The socket's descriptor, where bytes may be written past the transport; else -1."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.get_extra_info("sslcontext") is not None:
            return -1
        number: int = sock.fileno()
        return number

    @property
    def written(self) -> int:
        """Bytes so far; while the stream is in an audience, those too that are on their way from it."""
        return self.bytes if self.audience is None else self.bytes + self.audience.sealed[1] - self.since[1]

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks now; ``events`` is how many events of the log are among them."""
        if self.closing is not None:
            return
        self.events += events
        self._write(self.subscription.frame(blocks))

    def beat(self) -> None:
        """Write a heartbeat, in the form that the client asked for."""
        if self.closing is None:
            self._write(_HEARTBEATS[self.events_as_heartbeat, self.subscription.chunked])

    def begins_with(self, entry: Entry) -> None:
        """Note that its first event is large; it may be more than its client can take."""
        if self.resumed:
            self._owner.reconnects.begins_with(self, entry)

    def end(self, reason: str) -> None:
        """Tell the client why, end the body, and close once that is flushed. Harmless when repeated."""
        if self.closing is not None:
            return
        frame = self.subscription.frame(self._owner.close_block(reason))
        if self.subscription.chunked:
            frame += LAST_CHUNK
        self._write(frame)
        self.closing = reason
        self._owner.closes(self)
        self.transport.close()

    def give_way(self) -> None:
        """End because its client has a newer stream, which has its place: so this one must not stay."""
        self.end("replaced")
        if self.transport.get_write_buffer_size():
            self.abort("replaced")

    def abort(self, reason: str) -> None:
        """Cut the connection now: its client takes nothing, so there is nobody to tell."""
        if self.closing is None:
            self.closing = reason
        self._owner.closes(self)
        self.transport.abort()

    def unread(self) -> int:
        """Return the bytes that are not acknowledged yet: ours, and the kernel's (SIOCOUTQ, tcp(7))."""
        waiting = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            with suppress(OSError):
                waiting += unpack("i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
        return waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        is_plain = transport.get_extra_info("sslcontext") is None
        self.transport.set_write_buffer_limits(high=HIGH_WATER if is_plain else HIGH_WATER_TLS)

    def data_received(self, data: bytes) -> None:
        # Nothing is expected. Reading goes on all the same: it is how a close is noticed at once.
        self.received += len(data)
        if self.received > MAX_INPUT:
            self.abort("unexpected_input")

    def pause_writing(self) -> None:
        self.paused = True
        self._owner.pauses(self)

    def resume_writing(self) -> None:
        self.paused = False
        self._owner.resumes(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.closing is None:
            self.closing = "client_closed" if exc is None else "client_lost"
        self._owner.lost(self)

    def _write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._owner.metrics.bytes_sent.value += len(data)
        self.transport.write(data)
