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

from gateway.config.model.config import Ack
from gateway.hub.subscription import Subscription


class Askable(Protocol):
    """What is needed of a stream."""

    id: str
    subscription: Subscription
    closing: str | None

    @property
    def can_take(self) -> bool:
        """Whether it is neither closing nor paused."""

    def send(self, blocks: bytes, events: int) -> None:
        """Write whole blocks."""

    def end(self, reason: str) -> None:
        """Tell the client why, and close."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How streams are asked. Durations are in seconds."""

    interval: float
    timeout: float
    retry_limit: int
    patience: float
    told: bytes
    """The member of ``stream.open`` that tells clients, with the comma before it."""

    @classmethod
    def of(cls, ack: Ack) -> "Rule":
        """Return the rule of a configuration's section."""
        told = {
            "interval": round(1000 * ack.interval),
            "timeout": round(1000 * ack.timeout),
            "retry_limit": ack.retry_limit,
        }
        member = b',"ack":' + msgspec.json.encode(told)
        return cls(ack.interval, ack.timeout, ack.retry_limit, ack.patience, member)


class Asked:
    """The questions to one stream."""

    __slots__ = ("_answered", "_due", "_judged", "rule", "sequence", "slot", "stream")

    def __init__(self, stream: Askable, rule: Rule) -> None:
        self.stream = stream
        self.rule = rule
        self.sequence = 0
        """The number of the last question; the first is 1."""
        self.slot = 0
        self._due = 0.0  # when the next one is
        self._judged = 0  # the last one whose time was found to be over
        self._answered = 0

    @property
    def asked_at(self) -> float:
        """When the last question was due; it was written at the visit after that."""
        return self._due - self.rule.interval

    @property
    def missed(self) -> int:
        """Misses in a row."""
        return max(self._judged - self._answered, 0)

    def begin(self, now: float) -> None:
        """Ask for the first time within an interval: a herd that came together must not answer together."""
        self._due = now + random.random() * self.rule.interval

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for the next question."""
        return now >= self._due

    def ask(self, now: float, late: float) -> int:
        """Return the number of the next question, which is written now.

        ``late`` is how many seconds after its time a stream may be visited; by more than that, and all that
        follows moves.
        """
        self.sequence += 1
        self._due = max(self._due, now - late) + self.rule.interval
        return self.sequence

    def answer(self, number: int) -> None:
        """Take an answer; one to a question that was answered already, or never asked, says nothing."""
        if self._answered < number <= self.sequence:
            self._answered = number

    def forgive(self) -> None:
        """Let everything that was asked until now count as answered."""
        self._answered = self.sequence

    def judge(self, now: float, late: float) -> int:
        """Return how many more questions were missed, since it was asked for last."""
        rule = self.rule
        left = self.asked_at + late + rule.timeout - now
        over = self.sequence - max(math.ceil(left / rule.interval), 0)
        before = max(self._judged, self._answered)
        self._judged = max(self._judged, over)
        return max(over - before, 0)
