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
from gateway.hub.encoded_event import Entry
from gateway.hub.subscription import Subscription
from gateway.observability.log_throttle import Seldom
from gateway.observability.metrics import Metrics, Tally
from gateway.streams.quotas.quota import Hold

log = structlog.get_logger("gateway.streams")

REPEATS = 5
"""Streams in a row that end in the same way before it is more than chance."""

REMEMBERED = 10_000
"""Addresses that are remembered for each of the two; the longest unseen is forgotten first."""

SHORTEST = 1.0
"""Seconds; no read timeout is shorter, and a page that is left at once is no client that waits."""

SAME_AGE = 0.5
"""Seconds by which ages may differ that come from one timeout."""

SOON = 10.0
"""Seconds within which a client ends its stream that cannot take an event."""

ENDED_BY_CLIENT = ("client_closed", "client_lost")

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Ended(Protocol):
    """What is needed of a stream that has ended."""

    closing: str | None
    events: int
    hold: Hold
    subscription: Subscription


class _Large(NamedTuple):
    """What is kept of an event; its payload must not stay in memory for it."""

    channel: str
    id: EventId
    size: int


class Reconnects:
    """Looks at the streams of this node that their clients end."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seldom = Seldom()
        # By address: the age at which its last quiet streams ended, and how many in a row did.
        self._quiet: OrderedDict[str, tuple[float, int]] = OrderedDict()
        # By address and event: how many streams ended there.
        self._stuck: OrderedDict[tuple[str, EventId], int] = OrderedDict()
        self._large: dict[Ended, _Large] = {}

    def __len__(self) -> int:
        return len(self._quiet) + len(self._stuck) + len(self._large)

    def begins_with(self, stream: Ended, entry: Entry) -> None:
        """Note that a large event is the first one after the id that a stream resumes from."""
        self._large[stream] = _Large(entry.channel, entry.id, len(entry.event.payload))

    def ended(self, stream: Ended, seconds: float, heartbeat: float) -> None:
        """Look at a stream that ended after so many seconds. ``heartbeat`` is its interval."""
        large = self._large.pop(stream, None) if self._large else None
        if large is not None:
            self._ended_at(stream, large, seconds)
        elif stream.events == 0 and seconds >= SHORTEST:
            self._ended_quiet(stream, seconds, heartbeat)

    def _ended_quiet(self, stream: Ended, seconds: float, heartbeat: float) -> None:
        address = _address(stream)
        if seconds >= 2 * heartbeat:
            self._quiet.pop(address, None)  # it waits for heartbeats
        elif seconds < heartbeat and stream.closing in ENDED_BY_CLIENT:
            age, repeats = self._quiet.get(address, (seconds, 0))
            repeats = repeats + 1 if abs(seconds - age) <= SAME_AGE else 1
            _remember(self._quiet, address, (seconds, repeats))
            if self._is_trouble(repeats, self._metrics.impatient_disconnects, ("impatient", address)):
                log.warning(
                    "client_impatient",
                    client=address or None,
                    channels=stream.subscription.channels,
                    seconds=round(seconds, 1),
                    heartbeat=heartbeat,
                    note="Its quiet streams end at the same age, before a heartbeat: its read timeout is"
                    " shorter. Raise that to 2.5 heartbeats, or let it request a shorter one"
                    " (?heartbeat=4s), or lower timeouts.heartbeat: docs/clients.md.",
                )

    def _ended_at(self, stream: Ended, large: _Large, seconds: float) -> None:
        key = (_address(stream), large.id)
        if seconds > SOON or stream.closing not in ENDED_BY_CLIENT:
            self._stuck.pop(key, None)
            return
        repeats = self._stuck.get(key, 0) + 1
        _remember(self._stuck, key, repeats)
        if self._is_trouble(repeats, self._metrics.oversized_disconnects, ("oversized", *key)):
            log.warning(
                "client_stuck",
                client=key[0] or None,
                channel=large.channel,
                id=str(large.id),
                bytes=large.size,
                note="It ends its stream at this event, and resumes before it: its buffer for an event is"
                " smaller. Raise that, or publish less in an event (limits.event_bytes): docs/clients.md.",
            )

    def _is_trouble(self, repeats: int, tally: Tally, what: tuple[object, ...]) -> bool:
        """Count, and tell whether it is to be logged: once, when it is more than chance."""
        if repeats >= REPEATS:
            tally.value += 1
        return repeats == REPEATS and self._seldom.tell(what) is not None


def _address(stream: Ended) -> str:
    """Return what counts as one address; empty for all whose address has no limits."""
    peer = stream.hold.peer
    return "" if peer is None else peer.unit


def _remember(of: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    of[key] = value
    of.move_to_end(key)
    if len(of) > REMEMBERED:
        of.popitem(last=False)
