"""What one stream was asked, and what it answered. Pure: time is a number that is given.

Questions are numbered, one each interval, so their times need not be kept: the one before the last was
asked an interval earlier, or before that. An answer to one of them answers all that were asked before it, as
it shows that somebody was there later. So a stream is three numbers and a time, however many are out.
"""

import math
import random
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.config.model.config import AckConfig
from gateway.hub.subscription import Subscription


class AckStream(Protocol):
    """What is needed of a stream."""

    id: str
    subscription: Subscription
    close_reason: str | None

    @property
    def is_writable(self) -> bool:
        """Whether it is neither closing nor paused."""

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks."""

    def close(self, reason: str) -> None:
        """Tell the client why, and close."""


@dataclass(frozen=True, slots=True)
class AckRule:
    """How streams are asked. Durations are in seconds."""

    interval_seconds: float
    timeout_seconds: float
    retry_limit: int
    close_after_seconds: float
    open_member: bytes
    """The member of ``stream.open`` that tells clients, with the comma before it."""

    @classmethod
    def from_config(cls, ack: AckConfig) -> "AckRule":
        """Return the rule of a configuration's section."""
        told = {
            "interval": round(1000 * ack.interval),
            "timeout": round(1000 * ack.timeout),
            "retry_limit": ack.retry_limit,
        }
        member = b',"ack":' + msgspec.json.encode(told)
        return cls(ack.interval, ack.timeout, ack.retry_limit, ack.max_silence_seconds, member)


class AckState:
    """The questions to one stream."""

    __slots__ = ("_acknowledged", "_last_overdue", "_next_request_at", "bucket", "rule", "sequence", "stream")

    def __init__(self, stream: AckStream, rule: AckRule) -> None:
        self.stream = stream
        self.rule = rule
        self.sequence = 0
        """The number of the last question; the first is 1."""
        self.bucket = 0
        self._next_request_at = 0.0  # when the next one is
        self._last_overdue = 0  # the last one whose time was found to be over
        self._acknowledged = 0

    @property
    def last_request_at(self) -> float:
        """When the last question was due; it was written at the visit after that."""
        return self._next_request_at - self.rule.interval_seconds

    @property
    def missed_in_a_row(self) -> int:
        """Misses in a row."""
        return max(self._last_overdue - self._acknowledged, 0)

    def schedule_first(self, now: float) -> None:
        """Ask for the first time within an interval: a herd that came together must not answer together."""
        self._next_request_at = now + random.random() * self.rule.interval_seconds

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for the next question."""
        return now >= self._next_request_at

    def next_request(self, now: float, max_delay_seconds: float) -> int:
        """Return the number of the next question, which is written now.

        ``late`` is how many seconds after its time a stream may be visited; by more than that, and all that
        follows moves.
        """
        self.sequence += 1
        self._next_request_at = (
            max(self._next_request_at, now - max_delay_seconds) + self.rule.interval_seconds
        )
        return self.sequence

    def acknowledge(self, sequence: int) -> None:
        """Take an answer; one to a question that was answered already, or never asked, says nothing."""
        if self._acknowledged < sequence <= self.sequence:
            self._acknowledged = sequence

    def reset(self) -> None:
        """Let everything that was asked until now count as answered."""
        self._acknowledged = self.sequence

    def overdue(self, now: float, max_delay_seconds: float) -> int:
        """Return how many more questions were missed, since it was asked for last."""
        rule = self.rule
        left = self.last_request_at + max_delay_seconds + rule.timeout_seconds - now
        over = self.sequence - max(math.ceil(left / rule.interval_seconds), 0)
        before = max(self._last_overdue, self._acknowledged)
        self._last_overdue = max(self._last_overdue, over)
        return max(over - before, 0)
