"""The acknowledged heartbeats of one stream: sent, acknowledged, missed. Pure: time is passed in.

Heartbeats are numbered, one per interval, so their times need not be stored: the one before the last was sent
an interval earlier, or before that. Acknowledging one acknowledges all that were sent before it, as it shows
that the client was there later. So a stream needs three numbers and a time, however many are unanswered.
"""

import math
import random
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.config.model.config import AckConfig
from gateway.hub.audience import Stream


class AckStream(Stream, Protocol):
    """What is needed of a stream."""

    id: str


@dataclass(frozen=True, slots=True)
class AckRule:
    """When heartbeats must be acknowledged. Durations are in seconds."""

    interval_seconds: float
    timeout_seconds: float
    retry_limit: int
    close_after_seconds: float
    open_member: bytes
    """The member of ``stream.open`` that describes the rule, with the comma before it."""

    @classmethod
    def from_config(cls, ack: AckConfig) -> "AckRule":
        """Return the rule of a configuration's section."""
        described = {
            "interval": round(1000 * ack.interval),
            "timeout": round(1000 * ack.timeout),
            "retry_limit": ack.retry_limit,
        }
        member = b',"ack":' + msgspec.json.encode(described)
        return cls(ack.interval, ack.timeout, ack.retry_limit, ack.max_silence_seconds, member)


class AckState:
    """The acknowledged heartbeats of one stream."""

    __slots__ = ("_acknowledged", "_last_overdue", "_next_request_at", "rule", "sequence", "stream")

    def __init__(self, stream: AckStream, rule: AckRule) -> None:
        self.stream = stream
        self.rule = rule
        self.sequence = 0
        """The number of the last heartbeat; the first is 1."""
        self._next_request_at = 0.0
        self._last_overdue = 0  # the number of the last one whose timeout was found to be over
        self._acknowledged = 0

    @property
    def last_request_at(self) -> float:
        """When the last heartbeat was due; it was written at the visit after that."""
        return self._next_request_at - self.rule.interval_seconds

    @property
    def missed_in_a_row(self) -> int:
        """Misses in a row."""
        return max(self._last_overdue - self._acknowledged, 0)

    def schedule_first(self, now: float) -> None:
        """Send the first one at random within an interval, so that a herd does not answer all at once."""
        self._next_request_at = now + random.random() * self.rule.interval_seconds

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for the next heartbeat."""
        return now >= self._next_request_at

    def next_request(self, now: float, max_delay_seconds: float) -> int:
        """Return the number of the next heartbeat, which is written now.

        A stream may be visited up to ``max_delay_seconds`` after the due time; a longer delay moves all later
        due times.
        """
        self.sequence += 1
        base = max(self._next_request_at, now - max_delay_seconds)
        self._next_request_at = base + self.rule.interval_seconds
        return self.sequence

    def acknowledge(self, sequence: int) -> None:
        """Record an acknowledgement; ignore a repeated one, and one of a heartbeat that was not sent."""
        if self._acknowledged < sequence <= self.sequence:
            self._acknowledged = sequence

    def reset(self) -> None:
        """Count everything that was sent until now as acknowledged."""
        self._acknowledged = self.sequence

    def overdue(self, now: float, max_delay_seconds: float) -> int:
        """Return how many more heartbeats were missed since the last call."""
        rule = self.rule
        left = self.last_request_at + max_delay_seconds + rule.timeout_seconds - now
        over = self.sequence - max(math.ceil(left / rule.interval_seconds), 0)
        before = max(self._last_overdue, self._acknowledged)
        self._last_overdue = max(self._last_overdue, over)
        return max(over - before, 0)
