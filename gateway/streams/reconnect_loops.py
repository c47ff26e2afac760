"""Detects clients that reconnect in a loop because of a wrong setting, and logs the remedy.

There are two kinds. A client whose read timeout is shorter than the heartbeat closes each quiet stream at the
same age. A client whose buffer is smaller than an event closes its stream at that event, and resumes before
it. Either is recognized by repetition: the same address, and the same age or event.
"""

from typing import NamedTuple, Protocol

import structlog

from gateway.core.bounded_dict import BoundedDict
from gateway.core.event import EventId
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics, PlainCounter
from gateway.streams.quotas.client_limits import StreamQuota

log = structlog.get_logger("gateway.streams")

MIN_REPEATS = 5
"""Streams in a row that must end in the same way to count as a loop."""

MAX_TRACKED_ADDRESSES = 10_000
"""Addresses that are remembered for each of the two; the least recent is forgotten first."""

MIN_STREAM_SECONDS = 1.0
"""Shorter streams are ignored: no read timeout is shorter, but users leave pages at once."""

AGE_TOLERANCE_SECONDS = 0.5
"""Seconds by which ages that come from one timeout may differ."""

STUCK_WITHIN_SECONDS = 10.0
"""Seconds within which a client closes a stream whose event is too large for it."""

CLIENT_CLOSE_REASONS = ("client_closed", "client_lost")


class ClosedStream(Protocol):
    """What is needed of a stream that has ended."""

    close_reason: str | None
    events_sent: int
    quota: StreamQuota
    subscription: Subscription


class _LargeEvent(NamedTuple):
    """An event without its payload, which must not stay in memory for it."""

    channel: str
    id: EventId
    payload_bytes: int


class ReconnectLoopDetector:
    """Observes the streams of this node that their clients close."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_throttle = LogThrottle()
        # By address: the age at which its last quiet streams ended, and how many in a row did.
        self._quiet_closes: BoundedDict[str, tuple[float, int]] = BoundedDict(MAX_TRACKED_ADDRESSES)
        # By address and event: how many streams ended there.
        self._closes_by_event: BoundedDict[tuple[str, EventId], int] = BoundedDict(MAX_TRACKED_ADDRESSES)
        self._large_first_events: dict[ClosedStream, _LargeEvent] = {}

    def __len__(self) -> int:
        return len(self._quiet_closes) + len(self._closes_by_event) + len(self._large_first_events)

    def on_large_first_event(self, stream: ClosedStream, entry: EncodedEvent) -> None:
        """Record that the first event after a stream's resume point is a large one."""
        self._large_first_events[stream] = _LargeEvent(entry.channel, entry.id, len(entry.event.payload))

    def on_closed(self, stream: ClosedStream, seconds: float, heartbeat: float) -> None:
        """Record a stream that ended after so many seconds. ``heartbeat`` is its interval in seconds."""
        large = self._large_first_events.pop(stream, None) if self._large_first_events else None
        if large is not None:
            self._on_close_at_event(stream, large, seconds)
        elif stream.events_sent == 0 and seconds >= MIN_STREAM_SECONDS:
            self._on_quiet_close(stream, seconds, heartbeat)

    def _on_quiet_close(self, stream: ClosedStream, seconds: float, heartbeat: float) -> None:
        address = _stream_address(stream)
        if seconds >= 2 * heartbeat:
            self._quiet_closes.remove(address)  # it waits for heartbeats
        elif seconds < heartbeat and stream.close_reason in CLIENT_CLOSE_REASONS:
            age, repeats = self._quiet_closes.get(address, (seconds, 0))
            repeats = repeats + 1 if abs(seconds - age) <= AGE_TOLERANCE_SECONDS else 1
            self._quiet_closes.put(address, (seconds, repeats))
            if self._should_report(repeats, self._metrics.impatient_disconnects, ("impatient", address)):
                log.warning(
                    "client_read_timeout_too_short",
                    client=address or None,
                    channels=stream.subscription.channels,
                    seconds=round(seconds, 1),
                    heartbeat=heartbeat,
                    note="Its quiet streams end at the same age, before a heartbeat: its read timeout is"
                    " shorter. Raise that to 2.5 heartbeats, or let it request a shorter one"
                    " (?heartbeat=4s), or lower timeouts.heartbeat: docs/clients.md.",
                )

    def _on_close_at_event(self, stream: ClosedStream, large: _LargeEvent, seconds: float) -> None:
        key = (_stream_address(stream), large.id)
        if seconds > STUCK_WITHIN_SECONDS or stream.close_reason not in CLIENT_CLOSE_REASONS:
            self._closes_by_event.remove(key)
            return
        repeats = self._closes_by_event.get(key, 0) + 1
        self._closes_by_event.put(key, repeats)
        if self._should_report(repeats, self._metrics.oversized_disconnects, ("oversized", *key)):
            log.warning(
                "client_buffer_too_small",
                client=key[0] or None,
                channel=large.channel,
                id=str(large.id),
                bytes=large.payload_bytes,
                note="It ends its stream at this event, and resumes before it: its buffer for an event is"
                " smaller. Raise that, or publish less in an event (limits.event_bytes): docs/clients.md.",
            )

    def _should_report(self, repeats: int, counter: PlainCounter, key: tuple[object, ...]) -> bool:
        """Count a repetition, and tell whether to log it: once, when it reaches `MIN_REPEATS`."""
        if repeats >= MIN_REPEATS:
            counter.value += 1
        return repeats == MIN_REPEATS and self._log_throttle.should_log(key) is not None


def _stream_address(stream: ClosedStream) -> str:
    """Return the key of a stream's address; empty for all whose address has no limits."""
    usage = stream.quota.address_usage
    return "" if usage is None else usage.address_key
