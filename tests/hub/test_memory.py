"""What the hub keeps of streams that wait for their first event, whose channels nobody else follows."""

from typing import Any

import pytest

from gateway.broker.memory import MemoryBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import ChannelConfig
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, EventId, Retention
from gateway.hub.audience import Audience
from gateway.hub.hub import Hub
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from tests.support.memory import traced

OWN = ChannelConfig.model_validate({"from": [{"source": "s", "topic": "{user}.{id}"}], "access": "public"})
STREAMS = 200


class Quiet:
    """A stream that waits."""

    transport: Any = None
    subscription: Any = None
    close_reason: str | None = None
    is_writable = True
    fd = -1
    join_number = events_sent = bytes_sent = 0
    totals_at_join = (0, 0)
    audience: Audience | None = None

    def __init__(self, cursor: EventId) -> None:
        self.cursor = cursor

    def send(self, blocks: bytes, events: int) -> None:
        """Never called: nothing is replayed here."""
        raise AssertionError(blocks)

    def close(self, reason: str) -> None:
        """Never called: nothing fails here."""
        raise AssertionError(reason)


class Waiting:
    """A hub, and streams that wait on it."""

    def __init__(self) -> None:
        self.catalog = ChannelCatalog({"user.{user}.{id}": OWN})
        self.broker = MemoryBroker(history_bytes=1 << 20)
        self.hub = Hub(
            self.broker, self.catalog, Metrics(), ring_seconds=60, ring_bytes=1 << 20, clock=unix_ms
        )
        self.hub.start()
        self.streams: list[tuple[Quiet, Subscription]] = []

    def open(self, number: int, channels: int) -> None:
        """Let one more stream wait on channels of its own."""
        matches = [self.catalog.resolve(f"user.{number}.{each}") for each in range(channels)]
        subscription = Subscription.of(tuple(match for match in matches if match is not None))
        assert len(subscription.channels) == channels
        self.hub.watch(subscription)
        stream = Quiet(self.hub.head)
        self.hub.join(stream, subscription)
        self.streams.append((stream, subscription))

    def close_all(self) -> None:
        """Let all of them go."""
        for stream, subscription in self.streams:
            self.hub.leave(stream)
            self.hub.unwatch(subscription)
        self.streams.clear()
        self.catalog.reconfigure({"user.{user}.{id}": OWN})  # whose cache is bounded apart


@pytest.mark.parametrize(("channels", "most"), [(1, 3000), (50, 21_000)])
def test_a_stream_that_waits_on_channels_of_its_own_takes_little(channels: int, most: int) -> None:
    """Users with many channels of their own must not cost twenty times what docs/sizing.md says."""
    waiting = Waiting()
    waiting.open(-1, channels)
    with traced() as grown:
        for number in range(STREAMS):
            waiting.open(number, channels)
        assert (taken := grown()) / STREAMS <= most
        assert waiting.hub._ring.channel_count == 0, "a ring is made by the first event"
        waiting.close_all()
        assert grown() <= taken / 10, "tables that were large stay so; nothing is in them"
        assert not waiting.hub.channels


async def test_rings_that_are_made_late_are_whole_from_when_they_were_watched() -> None:
    """A stream that was full for a moment must not be sent to the log for what its node has seen."""
    waiting = Waiting()
    hub, broker = waiting.hub, waiting.broker
    await broker.append([Draft("user.1.0", b"1", 0, Retention(10))])  # nobody listens yet
    opened = hub.head
    waiting.open(1, 2)
    ((stream, subscription),) = waiting.streams
    assert hub.ring_covers(subscription, opened)
    assert not hub.ring_covers(subscription, EventId(opened.ms - 1, 0))
    hub.leave(stream)
    for channel in ("user.1.0", "user.2.0", "user.1.1"):
        await broker.append([Draft(channel, b"2", 0, Retention(10))])
    assert hub.ring_covers(subscription, opened)
    assert not hub.ring_covers(subscription, EventId(opened.ms - 1, 0))
    found = hub.read_ring(subscription, opened, 10)
    assert [entry.channel for entry in found] == ["user.1.0", "user.1.1"]
    hub.handle_log_gap(hub.head)
    assert not hub.ring_covers(subscription, opened), "what a node did not follow is not in its rings"
    assert hub.ring_covers(subscription, hub.head)
