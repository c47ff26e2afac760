"""One client's stream: the asyncio protocol of its connection after aiohttp has handed that over.

There is no task, no timer and no queue per stream (bench row: idle). Writes go straight to the transport. If
that is full, the stream pauses and leaves its audience with a cursor; once it has drained, the stream
continues by replay (`gateway.hub.replay`). Every write holds whole events, so a stream always ends between
two of them.
"""

import asyncio
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ
from typing import Protocol, cast

from gateway.core.event import EventId
from gateway.core.sse import HEARTBEAT_COMMENT, LAST_CHUNK, encode_control_frame, encode_http_chunk
from gateway.hub.audience import Audience
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.streams.acks.state import AckState
from gateway.streams.quotas.client_limits import StreamQuota
from gateway.streams.reconnect_loops import ReconnectLoopDetector
from gateway.streams.short_heartbeats import ShortHeartbeat

HIGH_WATER_BYTES = 0
"""Bytes in a transport's buffer above which its stream pauses; see `gateway.hub.audience`."""

HIGH_WATER_TLS_BYTES = 32 * 1024
"""The same for TLS, which always buffers something."""

MAX_INPUT_BYTES = 64 * 1024
"""Bytes that a client may send on its stream, where none are expected, before it is cut."""

_HEARTBEAT_EVENT = encode_control_frame("stream.heartbeat", {})
# By (the client requested events, the stream is chunked); encoded once, bench row: idle.
_HEARTBEATS = {
    (False, False): HEARTBEAT_COMMENT,
    (False, True): encode_http_chunk(HEARTBEAT_COMMENT),
    (True, False): _HEARTBEAT_EVENT,
    (True, True): encode_http_chunk(_HEARTBEAT_EVENT),
}


class StreamOwner(Protocol):
    """Counts a stream and reacts to its transport: `gateway.streams.registry.StreamRegistry`."""

    metrics: Metrics
    reconnect_loops: ReconnectLoopDetector

    def close_block(self, reason: str, id: EventId | None = None) -> bytes:
        """Return the ``stream.close`` that ends a stream."""

    def on_stalled(self, stream: "StreamConnection") -> None:
        """Take a stream whose transport is full, or that is closing, out of its audience."""

    def on_resumed(self, stream: "StreamConnection") -> None:
        """Continue a stream whose transport has room again."""

    def on_connection_lost(self, stream: "StreamConnection") -> None:
        """Remove a stream whose connection is gone."""


class StreamConnection(asyncio.Protocol):
    """A stream from the handover to the last byte. The registry creates and counts them."""

    __slots__ = (
        "_registry",
        "ack_state",
        "audience",
        "bytes_at_last_sweep",
        "bytes_sent",
        "close_reason",
        "cursor",
        "events_sent",
        "expires_at",
        "expiry_reason",
        "has_heartbeat_events",
        "head_at_open",
        "id",
        "input_bytes",
        "is_paused",
        "is_replaying",
        "is_resumed",
        "join_number",
        "last_progress_at",
        "opened_at",
        "origin",
        "quota",
        "reported_gaps",
        "short_heartbeat",
        "subscription",
        "totals_at_join",
        "transport",
        "unread_bytes_at_progress",
    )

    transport: asyncio.Transport

    def __init__(
        self,
        registry: StreamOwner,
        id: str,
        subscription: Subscription,
        cursor: EventId,
        head_at_open: EventId,
        quota: StreamQuota,
        *,
        has_heartbeat_events: bool,
        short_heartbeat: ShortHeartbeat | None = None,
    ) -> None:
        self._registry = registry
        self.id = id
        self.subscription = subscription
        self.cursor = cursor
        self.head_at_open = head_at_open
        self.quota = quota
        self.has_heartbeat_events = has_heartbeat_events
        self.short_heartbeat = short_heartbeat  # None: the default interval
        self.ack_state: AckState | None = None
        self.audience: Audience | None = None
        self.reported_gaps: dict[str, EventId] = {}
        self.is_replaying = False
        self.is_paused = False
        self.close_reason: str | None = None
        self.events_sent = 0
        self.bytes_sent = 0
        # Bytes at the last visit of the sweep; -1: that visit, or the opening, wrote.
        self.bytes_at_last_sweep = -1
        self.is_resumed = False  # whether its client sent a resume point
        self.join_number = 0
        self.totals_at_join = (0, 0)
        self.input_bytes = 0
        self.opened_at = 0.0
        self.expires_at = 0.0
        self.expiry_reason = "max_age"  # why it is closed at `expires_at`
        self.origin: str | None = None  # of the page that opened it
        self.last_progress_at = 0.0  # when its client last read, while the transport is full
        self.unread_bytes_at_progress = 0  # the unread bytes at that time

    @property
    def is_writable(self) -> bool:
        """Whether it is neither closing nor paused."""
        return self.close_reason is None and not self.is_paused

    @property
    def fd(self) -> int:
        """The socket's descriptor, where bytes may be written past the transport; else -1."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.get_extra_info("sslcontext") is not None:
            return -1
        number: int = sock.fileno()
        return number

    @property
    def total_bytes(self) -> int:
        """Bytes so far, with those that are on their way from its audience."""
        return (
            self.bytes_sent
            if self.audience is None
            else self.bytes_sent + self.audience.sealed_totals[1] - self.totals_at_join[1]
        )

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks now; ``events`` is how many events of the log are among them."""
        if self.close_reason is not None:
            return
        self.events_sent += events
        self._write(self.subscription.frame(blocks))

    def send_heartbeat(self) -> None:
        """Write a heartbeat, as a comment or an event."""
        if self.close_reason is None:
            self._write(_HEARTBEATS[self.has_heartbeat_events, self.subscription.is_chunked])

    def on_large_first_event(self, entry: EncodedEvent) -> None:
        """Record that its first event is large and may exceed its client's buffer."""
        if self.is_resumed:
            self._registry.reconnect_loops.on_large_first_event(self, entry)

    def close(self, reason: str) -> None:
        """Send ``stream.close``, end the body, and close once that is flushed. Harmless when repeated."""
        if self.close_reason is not None:
            return
        frame = self.subscription.frame(self._registry.close_block(reason))
        if self.subscription.is_chunked:
            frame += LAST_CHUNK
        self._write(frame)
        self.close_reason = reason
        self._registry.on_stalled(self)
        self.transport.close()

    def close_replaced(self) -> None:
        """Close because its client has a newer stream, which has taken its place under the limits."""
        self.close("replaced")
        if self.transport.get_write_buffer_size():
            self.abort("replaced")

    def abort(self, reason: str) -> None:
        """Cut the connection now: its client reads nothing any more."""
        if self.close_reason is None:
            self.close_reason = reason
        self._registry.on_stalled(self)
        self.transport.abort()

    def unread_bytes(self) -> int:
        """Return the bytes that the peer has not acknowledged, in the transport and the kernel (tcp(7))."""
        waiting = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            with suppress(OSError):
                waiting += unpack("i", ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]
        return waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        is_plain = transport.get_extra_info("sslcontext") is None
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES if is_plain else HIGH_WATER_TLS_BYTES)

    def data_received(self, data: bytes) -> None:
        # Nothing is expected, but only reading notices at once that the client closes.
        self.input_bytes += len(data)
        if self.input_bytes > MAX_INPUT_BYTES:
            self.abort("unexpected_input")

    def pause_writing(self) -> None:
        self.is_paused = True
        self._registry.on_stalled(self)

    def resume_writing(self) -> None:
        self.is_paused = False
        self._registry.on_resumed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.close_reason is None:
            self.close_reason = "client_closed" if exc is None else "client_lost"
        self._registry.on_connection_lost(self)

    def _write(self, data: bytes) -> None:
        self.bytes_sent += len(data)
        self._registry.metrics.bytes_sent.value += len(data)
        self.transport.write(data)
