"""Heartbeats that clients answer: who is asked, when, and whose stream is closed because nobody answers.

How it works. Streams that are asked are dealt into slots, and each tick visits one of them, as
`gateway.streams.heartbeat` does: no stream has a timer, and while none is asked nothing ticks. A visit
counts what was missed, closes a stream that missed too much in a row, and asks where it is time.

When nobody is blamed. An answer may land on any node, and comes here through the log. So while the log
cannot be reached, for `KUBERNETES_GRACE_SECONDS` after that, and after a time in which this process itself stood still,
nothing that was asked until then counts: see `AckTracker.reset`. A stream that takes no bytes is the write
timeout's to judge.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count

from gateway.config.model.config import AckSetting, ChannelConfig, Config
from gateway.core.sse import encode_control_frame
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.state import AckRule, AckState

BUCKETS = 32

VISITS_PER_INTERVAL = 8
"""Visits of each stream in the shortest interval, or timeout, of any: how exact times are kept."""

MAX_TICK_SECONDS = 0.25
"""Seconds between two ticks at the most, so that no trouble of the log comes and goes unseen."""

STALL_SECONDS = 2.0
"""Seconds by which a tick may be late before this process must have missed answers itself."""

GRACE_SECONDS = 10.0
"""How long after a trouble answers may still be on their way, or other nodes in it."""


class AckTracker:
    """The streams of this node that are asked."""

    def __init__(
        self,
        nonces: NonceSigner,
        metrics: Metrics,
        default: AckSetting,
        channels: Mapping[str, ChannelConfig],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
        is_log_reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        """``is_log_reachable`` tells whether acknowledgements that land on other nodes arrive here now."""
        self._nonces = nonces
        self._background = background
        self._guarded_sweep = background.guard_callback("ack_sweep", self._sweep)
        self._metrics = metrics
        self._states: dict[str, AckState] = {}
        self._buckets: list[dict[AckState, None]] = [{} for _ in range(BUCKETS)]
        self._bucket_numbers = count()
        self._next_bucket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._next_tick_at = 0.0
        self._grace_until = float("-inf")
        self._rules: dict[str, AckRule] = {}
        self.is_log_reachable = is_log_reachable
        nonces.on_change.add(self.reset)
        self._set_rules(default, channels)

    @property
    def is_enabled(self) -> bool:
        """Whether streams of any channel are asked."""
        return bool(self._rules)

    def __len__(self) -> int:
        return len(self._states)

    def apply(self, config: Config) -> None:
        """Ask by the rules of a configuration. Streams that are asked follow; others are not asked."""
        self._set_rules(config.ack, config.channels)
        if self.is_enabled:
            self._nonces.start_sharing()

    def _set_rules(self, default: AckSetting, channels: Mapping[str, ChannelConfig]) -> None:
        settings = {name: default if spec.ack is None else spec.ack for name, spec in channels.items()}
        self._rules = {
            name: AckRule.from_config(setting) for name, setting in settings.items() if setting != "none"
        }
        shortest = min(
            (min(rule.interval_seconds, rule.timeout_seconds) for rule in self._rules.values()), default=1.0
        )
        self._tick_seconds = min(shortest / VISITS_PER_INTERVAL / BUCKETS, MAX_TICK_SECONDS)
        for asked in list(self._states.values()):
            rule = self.rule_for(asked.stream.subscription)
            if rule is None:
                self.remove(asked)
            elif rule != asked.rule:
                asked.rule = rule
                asked.reset()
                asked.schedule_first(asyncio.get_running_loop().time())

    def rule_for(self, subscription: Subscription) -> AckRule | None:
        """Return how a stream is asked: by the strictest of its channels; None where none asks.

        The strictest is the one that would close a client which never answers first.
        """
        if not self._rules:
            return None
        found = [self._rules[name] for name in subscription.declared_names if name in self._rules]
        return (
            min(found, key=lambda rule: (rule.close_after_seconds, rule.interval_seconds)) if found else None
        )

    def add(self, asked: AckState) -> None:
        """Ask a stream from now on. Pair with `ends`."""
        loop = asyncio.get_running_loop()
        asked.schedule_first(loop.time())
        asked.bucket = next(self._bucket_numbers) % BUCKETS
        self._states[asked.stream.id] = asked
        self._buckets[asked.bucket][asked] = None
        if self._timer is None:
            self._next_tick_at = loop.time()
            self._schedule()

    def remove(self, asked: AckState) -> None:
        """Ask a stream no more. Harmless when repeated."""
        if self._states.pop(asked.stream.id, None) is not None:
            del self._buckets[asked.bucket][asked]

    def stop(self) -> None:
        """Ask nobody any more; harmless when repeated."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def acknowledge(self, connection: str, number: int) -> bool:
        """Take an answer; return False where the stream is not one of this node's that are asked."""
        asked = self._states.get(connection)
        if asked is not None:
            asked.acknowledge(number)
        return asked is not None

    def reset(self) -> None:
        """Blame nobody for what was asked until now, or is asked in the next `KUBERNETES_GRACE_SECONDS`."""
        self._grace_until = asyncio.get_running_loop().time() + GRACE_SECONDS

    @property
    def _max_delay_seconds(self) -> float:
        """Seconds between two visits of a stream: by so much what is asked may be late."""
        return self._tick_seconds * BUCKETS

    def _schedule(self) -> None:
        self._next_tick_at += self._tick_seconds
        self._timer = asyncio.get_running_loop().call_at(self._next_tick_at, self._guarded_sweep)

    def _sweep(self) -> None:
        if not self._states:
            self._timer = None
            return
        now = asyncio.get_running_loop().time()
        late = now - self._next_tick_at
        self._next_tick_at = max(
            self._next_tick_at, now - self._tick_seconds
        )  # what was late is not made up for
        self._schedule()
        if late > STALL_SECONDS or not self.is_log_reachable():
            self.reset()
        slot = self._buckets[self._next_bucket]
        self._next_bucket = (self._next_bucket + 1) % BUCKETS
        for asked in list(slot):
            try:
                self._visit(asked, now)
            except Exception as error:  # the others are asked all the same; this one may answer later
                self._background.record_failure("ack_sweep", error)
                asked.reset()

    def _visit(self, asked: AckState, now: float) -> None:
        stream = asked.stream
        if stream.close_reason is not None:
            return
        can_take = stream.is_writable
        if not can_take or asked.last_request_at <= self._grace_until:
            asked.reset()
        elif missed := asked.overdue(now, self._max_delay_seconds):
            self._metrics.acks_missed.value += missed
            if asked.missed_in_a_row >= asked.rule.retry_limit:
                stream.close("unacknowledged")
                return
        if can_take and asked.is_due(now):
            nonce = self._nonces.create(stream.id, asked.next_request(now, self._max_delay_seconds))
            stream.send(encode_control_frame("stream.heartbeat", {"nonce": nonce}), 0)
