"""Heartbeats that clients answer: who is asked, when, and whose stream is closed because nobody answers.

How it works. Streams that are asked are dealt into slots, and each tick visits one of them, as
`gateway.streams.heartbeat` does: no stream has a timer, and while none is asked nothing ticks. A visit
counts what was missed, closes a stream that missed too much in a row, and asks where it is time.

When nobody is blamed. An answer may land on any node, and comes here through the log. So while the log
cannot be reached, for `GRACE_SECONDS` after that, and after a time in which this process itself stood still,
nothing that was asked until then counts: see `Acks.forgive`. A stream that takes no bytes is the write
timeout's to judge.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count

from gateway.config.model.config import AckSetting, Channel
from gateway.core.sse import control_block
from gateway.hub.subscription import Subscription
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Metrics
from gateway.streams.acks.nonces import Nonces
from gateway.streams.acks.state import Asked, Rule

SLOTS = 32

VISITS = 8
"""Visits of each stream in the shortest interval, or timeout, of any: how exact times are kept."""

LONGEST_TICK = 0.25
"""Seconds between two ticks at the most, so that no trouble of the log comes and goes unseen."""

STOOD_STILL = 2.0
"""Seconds by which a tick may be late before this process must have missed answers itself."""

GRACE_SECONDS = 10.0
"""How long after a trouble answers may still be on their way, or other nodes in it."""


class Acks:
    """The streams of this node that are asked."""

    def __init__(
        self,
        nonces: Nonces,
        metrics: Metrics,
        default: AckSetting,
        channels: Mapping[str, Channel],
        background: Background = UNCOUNTED,
    ) -> None:
        self._nonces = nonces
        self._background = background
        self._guarded = background.guarded("ack_sweep", self._sweep)
        self._metrics = metrics
        self._asked: dict[str, Asked] = {}
        self._slots: list[dict[Asked, None]] = [{} for _ in range(SLOTS)]
        self._deal = count()
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._forgiven = float("-inf")
        self._rules: dict[str, Rule] = {}
        self.is_reached: Callable[[], bool] = lambda: True
        """Tells whether answers that land on other nodes come here just now."""
        self.reconfigure(default, channels)

    @property
    def is_on(self) -> bool:
        """Whether streams of any channel are asked."""
        return bool(self._rules)

    def __len__(self) -> int:
        return len(self._asked)

    def reconfigure(self, default: AckSetting, channels: Mapping[str, Channel]) -> None:
        """Ask by other rules. Streams that are asked follow; those that opened without it are not asked."""
        settings = {name: default if spec.ack is None else spec.ack for name, spec in channels.items()}
        self._rules = {name: Rule.of(setting) for name, setting in settings.items() if setting != "none"}
        shortest = min((min(rule.interval, rule.timeout) for rule in self._rules.values()), default=1.0)
        self._tick = min(shortest / VISITS / SLOTS, LONGEST_TICK)
        for asked in list(self._asked.values()):
            rule = self.rule(asked.stream.subscription)
            if rule is None:
                self.ends(asked)
            elif rule != asked.rule:
                asked.rule = rule
                asked.forgive()
                asked.begin(asyncio.get_running_loop().time())

    def rule(self, subscription: Subscription) -> Rule | None:
        """Return how a stream is asked: by the strictest of its channels; None where none asks.

        The strictest is the one that would close a client which never answers first.
        """
        if not self._rules:
            return None
        found = [self._rules[name] for name in subscription.names if name in self._rules]
        return min(found, key=lambda rule: (rule.patience, rule.interval)) if found else None

    def begins(self, asked: Asked) -> None:
        """Ask a stream from now on. Pair with `ends`."""
        loop = asyncio.get_running_loop()
        asked.begin(loop.time())
        asked.slot = next(self._deal) % SLOTS
        self._asked[asked.stream.id] = asked
        self._slots[asked.slot][asked] = None
        if self._timer is None:
            self._due = loop.time()
            self._schedule()

    def ends(self, asked: Asked) -> None:
        """Ask a stream no more. Harmless when repeated."""
        if self._asked.pop(asked.stream.id, None) is not None:
            del self._slots[asked.slot][asked]

    def stop(self) -> None:
        """Ask nobody any more; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def answered(self, connection: str, number: int) -> bool:
        """Take an answer; return False where the stream is not one of this node's that are asked."""
        asked = self._asked.get(connection)
        if asked is not None:
            asked.answer(number)
        return asked is not None

    def forgive(self) -> None:
        """Blame nobody for what was asked until now, or is asked in the next `GRACE_SECONDS`."""
        self._forgiven = asyncio.get_running_loop().time() + GRACE_SECONDS

    @property
    def _late(self) -> float:
        """Seconds between two visits of a stream: by so much what is asked may be late."""
        return self._tick * SLOTS

    def _schedule(self) -> None:
        self._due += self._tick
        self._timer = asyncio.get_running_loop().call_at(self._due, self._guarded)

    def _sweep(self) -> None:
        if not self._asked:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        late = now - self._due
        self._due = max(self._due, now - self._tick)  # what was late is not made up for
        self._schedule()
        if late > STOOD_STILL or not self.is_reached():
            self.forgive()
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        for asked in list(slot):
            try:
                self._visit(asked, now)
            except Exception as error:  # the others are asked all the same; this one may answer later
                self._background.failed("ack_sweep", error)
                asked.forgive()

    def _visit(self, asked: Asked, now: float) -> None:
        stream = asked.stream
        if stream.closing is not None:
            return
        can_take = stream.can_take
        if not can_take or asked.asked_at <= self._forgiven:
            asked.forgive()
        elif missed := asked.judge(now, self._late):
            self._metrics.acks_missed.value += missed
            if asked.missed >= asked.rule.retry_limit:
                stream.end("unacknowledged")
                return
        if can_take and asked.is_due(now):
            nonce = self._nonces.make(stream.id, asked.ask(now, self._late))
            stream.send(control_block("stream.heartbeat", {"nonce": nonce}), 0)
