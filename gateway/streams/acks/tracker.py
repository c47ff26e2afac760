"""Acknowledged heartbeats: which streams get them, when, and which are closed because no answer comes.

A visit counts the misses of a stream, closes it after too many in a row, and sends the next heartbeat where
that is due.

When misses do not count. An acknowledgement may arrive at any node and comes here through the log. So while
the log cannot be reached, for `GRACE_SECONDS` after that, and after a time in which this process itself was
stalled, every heartbeat that was sent until then counts as acknowledged (`AckTracker.reset`). A stream that
takes no bytes is left to the write timeout.
"""

import asyncio
from collections.abc import Callable, Mapping

from gateway.config.model.config import AckSetting, ChannelConfig
from gateway.core.sse import encode_control_frame
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.acks.nonces import NonceSigner
from gateway.streams.acks.state import AckRule, AckState
from gateway.streams.bucket_sweep import BucketSweep

BUCKETS = 32

VISITS_PER_INTERVAL = 8
"""Visits of each stream in the shortest configured interval or timeout: the precision of both."""

MAX_TICK_SECONDS = 0.25
"""Most seconds between two ticks, so that no outage of the log passes unnoticed."""

STALL_SECONDS = 2.0
"""Seconds by which a tick may be late before this process must have missed acknowledgements itself."""

GRACE_SECONDS = 10.0
"""How long after an outage acknowledgements may still be on their way, or other nodes cut off."""


class AckTracker(BucketSweep[AckState]):
    """Visits the streams of this node whose clients acknowledge heartbeats."""

    def __init__(
        self,
        nonces: NonceSigner,
        metrics: Metrics,
        default: AckSetting,
        channels: Mapping[str, ChannelConfig],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        super().__init__("ack_sweep", background, buckets=BUCKETS, tick_seconds=MAX_TICK_SECONDS)
        self._nonces = nonces
        self._metrics = metrics
        self._states: dict[str, AckState] = {}
        self._grace_until = float("-inf")
        self._rules: dict[str, AckRule] = {}
        self.is_log_reachable: Callable[[], bool] = lambda: True
        """Whether acknowledgements that arrive at other nodes come here at the moment."""
        self.reconfigure(default, channels)

    @property
    def is_enabled(self) -> bool:
        """Whether any channel requires acknowledgements."""
        return bool(self._rules)

    def reconfigure(self, default: AckSetting, channels: Mapping[str, ChannelConfig]) -> None:
        """Apply other rules. Tracked streams follow them; streams that opened without a rule stay without."""
        settings = {name: default if spec.ack is None else spec.ack for name, spec in channels.items()}
        self._rules = {
            name: AckRule.from_config(setting) for name, setting in settings.items() if setting != "none"
        }
        shortest = min(
            (min(rule.interval_seconds, rule.timeout_seconds) for rule in self._rules.values()), default=1.0
        )
        self.tick_seconds = min(shortest / VISITS_PER_INTERVAL / BUCKETS, MAX_TICK_SECONDS)
        for state in list(self._states.values()):
            rule = self.rule_for(state.stream.subscription)
            if rule is None:
                self.remove(state)
            elif rule != state.rule:
                state.rule = rule
                state.reset()
                state.schedule_first(asyncio.get_running_loop().time())

    def rule_for(self, subscription: Subscription) -> AckRule | None:
        """Return the strictest rule of a stream's channels; None where none has one.

        The strictest is the one that closes the stream of a client that never answers first.
        """
        if not self._rules:
            return None
        found = [self._rules[name] for name in subscription.declared_names if name in self._rules]
        return min(found, key=lambda rule: (rule.close_after_seconds, rule.interval_seconds), default=None)

    def add(self, item: AckState) -> None:
        """Send a stream acknowledged heartbeats from now on. Pair with `remove`."""
        item.schedule_first(asyncio.get_running_loop().time())
        self._states[item.stream.id] = item
        super().add(item)

    def remove(self, item: AckState) -> None:
        """Stop tracking a stream. Harmless when repeated."""
        self._states.pop(item.stream.id, None)
        super().remove(item)

    def acknowledge(self, connection: str, number: int) -> bool:
        """Record an acknowledgement; return False if this node tracks no such stream."""
        state = self._states.get(connection)
        if state is not None:
            state.acknowledge(number)
        return state is not None

    def reset(self) -> None:
        """Count heartbeats sent until now, or in the next `GRACE_SECONDS`, as acknowledged."""
        self._grace_until = asyncio.get_running_loop().time() + GRACE_SECONDS

    def _on_tick(self, now: float, late_seconds: float) -> None:
        if late_seconds > STALL_SECONDS or not self.is_log_reachable():
            self.reset()

    def _on_visit_failed(self, item: AckState) -> None:
        item.reset()

    def _visit(self, item: AckState, now: float) -> None:
        stream = item.stream
        if stream.close_reason is not None:
            return
        can_take = stream.is_writable
        if not can_take or item.last_request_at <= self._grace_until:
            item.reset()
        elif missed := item.overdue(now, self.round_seconds):
            self._metrics.acks_missed.value += missed
            if item.missed_in_a_row >= item.rule.retry_limit:
                stream.close("unacknowledged")
                return
        if can_take and item.is_due(now):
            nonce = self._nonces.create(stream.id, item.next_request(now, self.round_seconds))
            stream.send(encode_control_frame("stream.heartbeat", {"nonce": nonce}), 0)
