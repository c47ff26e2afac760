"""Clients that reconnect for ever because of a setting are recognised; those that just leave are not."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.auth.grant import ANONYMOUS
from gateway.config.channel_catalog import ChannelCatalog
from gateway.core.event import Event, EventId
from gateway.hub.encoded_event import EncodedEvent
from gateway.hub.subscription import Subscription
from gateway.observability.metrics import Metrics
from gateway.streams import reconnect_loops as reconnects
from gateway.streams.quotas.address_quotas import AddressUsage
from gateway.streams.quotas.client_limits import StreamQuota
from gateway.streams.reconnect_loops import MIN_REPEATS, STUCK_WITHIN_SECONDS, ReconnectLoopDetector
from tests.streams.test_acks import config
from tests.support.gateway import Gateway, eventually, gateway_running

CATALOG = ChannelCatalog(config().channels)
HEARTBEAT = 15.0
MATCH = CATALOG.resolve("orders")
assert MATCH is not None
SUBSCRIPTION = Subscription.of((MATCH,))


@dataclass(eq=False)
class Closed:
    """A stream that is over."""

    quota: StreamQuota
    close_reason: str | None = "client_closed"
    events_sent: int = 0
    subscription: Subscription = SUBSCRIPTION


def closed(address: str = "192.0.2.1", **more: Any) -> Closed:
    return Closed(StreamQuota(AddressUsage(address, None), ANONYMOUS, None, "", None, None), **more)


class World:
    """The part under test, and what it says."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reconnects = ReconnectLoopDetector(self.metrics)

    def quiet(self, *ages: float, **more: Any) -> list[str]:
        with capture_logs() as lines:
            for age in ages:
                self.reconnects.on_closed(closed(**more), age, HEARTBEAT)
        return [line["event"] for line in lines]

    def stuck(self, *ages: float, id: int = 1, **more: Any) -> list[Any]:
        with capture_logs() as lines:
            for age in ages:
                stream = closed(events_sent=1, **more)
                event = Event(EventId(id, 0), "orders", b"x" * 70_000, 1)
                assert MATCH is not None
                self.reconnects.on_large_first_event(stream, EncodedEvent(event, MATCH.declared))
                self.reconnects.on_closed(stream, age, HEARTBEAT)
        return lines

    @property
    def counts(self) -> tuple[int, int]:
        return self.metrics.impatient_disconnects.value, self.metrics.oversized_disconnects.value


@pytest.fixture
def world() -> World:
    return World()


def test_quiet_streams_that_end_at_one_age_are_counted_and_logged_once(world: World) -> None:
    """A client with a read timeout of ten seconds reconnects for ever, and nothing says why."""
    assert world.quiet(*[10.0, 10.1, 10.0, 9.9]) == []
    assert world.quiet(10.1) == ["client_read_timeout_too_short"]
    assert world.quiet(*[10.0] * 20) == []
    assert world.counts == (21, 0)


@pytest.mark.parametrize(
    ("ages", "more"),
    [
        ([3.0, 10.0, 5.0, 12.0, 7.0, 1.5, 10.0], {}),
        ([0.2] * 9, {}),
        ([20.0] * 9, {}),
        ([10.0] * 4 + [300.0] + [10.0] * 4, {}),
        ([10.0] * 9, {"events_sent": 1}),
        ([10.0] * 9, {"close_reason": "draining"}),
    ],
    ids=["other ages", "at once", "after a heartbeat", "one that waits", "with events", "ended by us"],
)
def test_streams_that_end_otherwise_are_no_trouble(
    world: World, ages: list[float], more: dict[str, Any]
) -> None:
    """An operator is sent after a read timeout wherever people leave pages."""
    assert world.quiet(*ages, **more) == []
    assert world.counts == (0, 0)


def test_addresses_do_not_add_up(world: World) -> None:
    """Five clients that leave once are taken for one that cannot stay."""
    for number in range(20):
        assert world.quiet(10.0, address=f"192.0.2.{number}") == []
        assert world.stuck(0.1, address=f"192.0.2.{number}") == []


def test_an_event_at_which_a_client_ends_again_and_again_is_named_once(world: World) -> None:
    """A client asks for the same event every two seconds for ever, and nothing says which."""
    assert world.stuck(*[0.1] * (MIN_REPEATS - 1)) == []
    (line,) = world.stuck(0.1)
    assert (line["event"], line["id"], line["bytes"]) == ("client_buffer_too_small", "1-0", 70_000)
    assert world.stuck(*[0.1] * 20) == []
    assert world.counts == (0, 21)


def test_clients_that_take_a_large_event_are_no_trouble(world: World) -> None:
    """Each large event is reported as one that no client can take."""
    assert world.stuck(*[0.1] * 4, STUCK_WITHIN_SECONDS + 1, *[0.1] * 4) == [], "it took it once"
    assert world.stuck(*[0.1] * 9, close_reason="draining") == []
    assert [world.stuck(0.1, id=number) for number in range(2, 20)] == [[]] * 18, "each another event"
    assert world.counts == (0, 0)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers with many addresses fill the memory."""
    monkeypatch.setattr(reconnects, "MAX_TRACKED_ADDRESSES", 100)
    world = World()
    for number in range(1000):
        world.quiet(10.0, address=f"address {number}")
        world.stuck(0.1, address=f"address {number}", id=number)
    assert len(world.reconnects) == 200


CLIENT = {"X-Forwarded-For": "192.0.2.1"}


@pytest.mark.idle_clock
async def test_a_read_timeout_below_the_heartbeat_is_found(gateway: Gateway) -> None:
    """okhttp-sse gives up after ten seconds: its quiet streams count as clients that leave."""
    with capture_logs() as lines:
        for _ in range(MIN_REPEATS):
            stream = await gateway.subscribe("/events/orders", CLIENT)
            await asyncio.sleep(4)
            stream.close()
            await eventually(lambda: not gateway.daemon.streams.active)
    assert await gateway.metric("client_timeout_disconnects_total") == 1
    (line,) = [line for line in lines if line["event"] == "client_read_timeout_too_short"]
    assert (line["client"], line["channels"], line["heartbeat"]) == ("192.0.2.1", ("orders",), 15.0)
    assert 3.5 < line["seconds"] < 4.5
    assert "heartbeat=" in line["note"]


async def test_an_event_beyond_a_clients_buffer_is_found(gateway: Gateway) -> None:
    """go-sse reads lines of up to 64 KiB: it ends at a longer one, and asks for it again every two seconds."""
    first = await gateway.open("/events/orders", CLIENT)
    id = (await first.next()).id
    first.close()
    (large,) = await gateway.post("orders", b'"' + b"x" * 100_000 + b'"')
    with capture_logs() as lines:
        for _ in range(MIN_REPEATS):
            stream = await gateway.subscribe("/events/orders", CLIENT | {"Last-Event-ID": id})
            await stream.next()
            stream.close()
            await eventually(lambda: not gateway.daemon.streams.active)
    assert await gateway.metric("large_event_disconnects_total") == 1
    (line,) = [line for line in lines if line["event"] == "client_buffer_too_small"]
    assert (line["client"], line["channel"], line["id"]) == ("192.0.2.1", "orders", large)
    assert line["bytes"] == 100_002


async def test_pages_that_show_the_last_large_event_are_no_trouble(gateway: Gateway) -> None:
    """People behind one address look at a page that begins with a large state, and leave."""
    await gateway.post("orders", b'"' + b"x" * 100_000 + b'"')
    for _ in range(2 * MIN_REPEATS):
        stream = await gateway.subscribe("/events/orders?last=1", CLIENT)
        await stream.next()
        stream.close()
        await eventually(lambda: not gateway.daemon.streams.active)
    assert await gateway.metric("large_event_disconnects_total") == 0


async def test_a_reconnect_loop_of_a_short_heartbeat_is_measured_by_it() -> None:
    """A client that asked for a short heartbeat, and gets it, is reported all the same."""
    over = {"timeouts": {"heartbeat_minimum": "100ms"}}
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events/orders?heartbeat=100ms", CLIENT)
        assert not gateway.daemon.streams.reconnect_loops._quiet_closes
        while stream.parser.comments < 30:
            await stream.read()
        stream.close()
        await eventually(lambda: not gateway.daemon.streams.active)
        assert not gateway.daemon.streams.reconnect_loops._quiet_closes
