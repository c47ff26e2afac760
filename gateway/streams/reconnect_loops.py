"""Recognises clients that reconnect for ever because a setting of theirs does not fit, and logs the remedy.

Two kinds are known. A client whose read timeout is shorter than the heartbeat ends each quiet stream at the
same age. And one whose buffer is smaller than an event ends its stream at that event, and resumes before it.
Both look like any client that leaves, except that they do it again and again: the same address, and the same
age or event.
"""

from collections import OrderedDict
from typing import NamedTuple, Protocol, TypeVar

import structlog

from gateway.core.event import EventId
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics, PlainCounter
from gateway.streams.quotas.stream_quota import StreamQuota

log = structlog.get_logger("gateway.streams")

MIN_REPEATS = 5
"""Streams in a row that end in the same way before it is more than chance."""

MAX_TRACKED_ADDRESSES = 10_000
"""Addresses that are remembered for each of the two; the longest unseen is forgotten first."""

MIN_STREAM_SECONDS = 1.0
"""Seconds; no read timeout is shorter, and a page that is left at once is no client that waits."""

AGE_TOLERANCE_SECONDS = 0.5
"""Seconds by which ages may differ that come from one timeout."""

STUCK_WITHIN_SECONDS = 10.0
"""Seconds within which a client ends its stream that cannot take an event."""

CLIENT_CLOSE_REASONS = ("client_closed", "client_lost")

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ClosedStream(Protocol):
    """What is needed of a stream that has ended."""

    close_reason: str | None
    events_sent: int
    quota: StreamQuota
    subscription: Subscription


class _LargeEvent(NamedTuple):
    """What is kept of an event; its payload must not stay in memory for it."""

    channel: str
    id: EventId
    payload_bytes: int


class ReconnectLoopDetector:
    """Looks at the streams of this node that their clients end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log_throttle = LogThrottle()
        # By address: the age at which its last quiet streams ended, and how many in a row did.
        self._quiet_closes: OrderedDict[str, tuple[float, int]] = OrderedDict()
        # By address and event: how many streams ended there.
        self._closes_by_event: OrderedDict[tuple[str, EventId], int] = OrderedDict()
        self._large_first_events: dict[ClosedStream, _LargeEvent] = {}

    def __len__(self) -> int:
        return len(self._quiet_closes) + len(self._closes_by_event) + len(self._large_first_events)

    def on_large_first_event(self, stream: ClosedStream, entry: EncodedEvent) -> None:
        """Note that a large event is the first one after the id that a stream resumes from."""
        self._large_first_events[stream] = _LargeEvent(entry.channel, entry.id, len(entry.event.payload))

    def on_closed(self, stream: ClosedStream, seconds: float, heartbeat: float) -> None:
        """Look at a stream that ended after so many seconds. ``heartbeat`` is its interval."""
        large = self._large_first_events.pop(stream, None) if self._large_first_events else None
        if large is not None:
            self._on_close_at_event(stream, large, seconds)
        elif stream.events_sent == 0 and seconds >= MIN_STREAM_SECONDS:
            self._on_quiet_close(stream, seconds, heartbeat)

    def _on_quiet_close(self, stream: ClosedStream, seconds: float, heartbeat: float) -> None:
        address = _stream_address(stream)
        if seconds >= 2 * heartbeat:
            self._quiet_closes.pop(address, None)  # it waits for heartbeats
        elif seconds < heartbeat and stream.close_reason in CLIENT_CLOSE_REASONS:
            age, repeats = self._quiet_closes.get(address, (seconds, 0))
            repeats = repeats + 1 if abs(seconds - age) <= AGE_TOLERANCE_SECONDS else 1
            _put_bounded(self._quiet_closes, address, (seconds, repeats))
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
            self._closes_by_event.pop(key, None)
            return
        repeats = self._closes_by_event.get(key, 0) + 1
        _put_bounded(self._closes_by_event, key, repeats)
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

    def _should_report(self, repeats: int, tally: PlainCounter, what: tuple[object, ...]) -> bool:
        """Count, and tell whether it is to be logged: once, when it is more than chance."""
        if repeats >= MIN_REPEATS:
            tally.value += 1
        return repeats == MIN_REPEATS and self._log_throttle.should_log(what) is not None


def _stream_address(stream: ClosedStream) -> str:
    """Return what counts as one address; empty for all whose address has no limits."""
    peer = stream.quota.address_usage
    return "" if peer is None else peer.address_key


def _put_bounded(of: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    of[key] = value
    of.move_to_end(key)
    if len(of) > MAX_TRACKED_ADDRESSES:
        of.popitem(last=False)
