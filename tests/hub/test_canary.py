"""Readiness by proof: an event that goes the whole way and comes back."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gateway.broker.memory import MemoryBroker
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, Event, EventId, Retention
from gateway.hub import canary as canary_module
from gateway.hub.canary import Canary
from gateway.hub.control_channel import ControlChannel
from gateway.observability.metrics import PlainCounter
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries that fly often, and are missed soon."""
    monkeypatch.setattr(canary_module, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(canary_module, "TIMEOUT_SECONDS", 2.0)


async def reasons(gateway: Gateway) -> list[str]:
    """Return why a gateway is not ready."""
    return list((await gateway.admin("/readyz"))[1]["not_ready"])


@pytest.mark.usefixtures("quick")
async def test_a_frozen_log_makes_a_node_unready_by_itself(redis: RedisServer) -> None:
    """Connections that live and a log that answers nothing: a balancer must look elsewhere, and come back."""
    # So slow that only the canary can be what notices.
    async with gateway_running({"broker": {"url": redis.url, "timeout": "10m"}}) as gateway:
        await eventually(lambda: _is_ready(gateway))
        redis.freeze()
        try:
            await eventually(lambda: _is_missed(gateway))
            assert (await gateway.admin("/readyz"))[0] == 503
            assert (await gateway.admin("/healthz"))[0] == 200, "a restart would not mend it"
            assert await gateway.metric("canary_seconds") >= 2
            assert await gateway.metric("canary_failures_total") >= 1
        finally:
            redis.thaw()
        await eventually(lambda: _is_ready(gateway))
        await eventually(lambda: _is_below(gateway, 2))


async def _is_missed(gateway: Gateway) -> bool:
    return any(
        reason.startswith("canary: sent ") and " s ago and not back" in reason
        for reason in await reasons(gateway)
    )


async def _is_ready(gateway: Gateway) -> bool:
    return (await gateway.admin("/readyz"))[0] == 200


async def _is_below(gateway: Gateway, seconds: float) -> bool:
    return await gateway.metric("canary_seconds") < seconds


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("log", ["memory", "sqlite", "redis"])
async def test_it_leaves_no_trace(log: str, redis: RedisServer, tmp_path: Any) -> None:
    """A log that fills with canaries, or a client that is told a gap because of them."""
    url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/log.db", "redis": redis.url}[log]
    async with gateway_running({"broker": {"url": url}}) as gateway:
        stream = await gateway.subscribe("/events/orders")
        await gateway.post("orders", '"before"')
        first = await stream.next()
        keys = set(redis.client().keys("*"))
        flown = gateway.daemon.canary._sequence
        await eventually(lambda: gateway.daemon.canary._sequence > flown + 20)
        assert set(redis.client().keys("*")) == keys
        await gateway.post("orders", '"after"')
        second = await stream.next()
        assert (second.json["payload"], len(stream.messages)) == ("after", 3)
        # Somebody who was away meanwhile misses nothing, and is told so.
        again = await gateway.open("/events/orders", {"Last-Event-ID": first.id})
        assert (await again.next()).json["resume"] == "complete"
        assert (await again.next()).json["payload"] == "after"


@pytest.mark.usefixtures("quick")
async def test_nodes_do_not_take_each_others(redis: RedisServer) -> None:
    """One node's canary says nothing about another node."""
    async with (
        gateway_running({"broker": {"url": redis.url}}) as one,
        gateway_running({"broker": {"url": redis.url}}) as other,
    ):
        canary = one.daemon.canary
        others = 0

        def only_others(about: Any, id: EventId) -> None:
            nonlocal others
            if about["node"] != canary._node_id:
                others += 1
                canary._on_received(about, id)

        one.daemon.control_channel.add_handler("canary", only_others, has_history=False)
        await eventually(lambda: canary.fault is not None)
        await eventually(lambda: others > 0)
        await eventually(lambda: other.daemon.canary.fault is None)


class Bench:
    """A canary on a log in memory, with a pump of the test's."""

    def __init__(self, pump: Callable[[Callable[[], None]], None]) -> None:
        self.broker = MemoryBroker(history_bytes=1 << 20)
        self.failures = PlainCounter()
        notices = ControlChannel(self.broker, unix_ms)
        self.canary = Canary(notices, pump, self.failures)

        def deliver(events: Sequence[Event]) -> None:
            for event in events:
                notices.receive(event)

        self.broker.follow(deliver, lambda until: None)


async def test_a_pump_that_stands_still_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is well and no stream gets anything."""
    monkeypatch.setattr(canary_module, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(canary_module, "FIRST_TIMEOUT_SECONDS", 0.1)
    bench = Bench(lambda call: None)
    await bench.canary.start()
    try:
        assert bench.canary.fault == "canary: none was back yet"
        await eventually(lambda: bench.failures.value > 0)
    finally:
        await bench.canary.stop()


async def test_what_others_write_is_no_canary() -> None:
    """A newer node, or a stranger in the log, cannot break what follows it."""
    bench = Bench(lambda call: call())
    await bench.canary.start()
    for body in (b"[]", b"{}", b"no JSON", json.dumps({"node": 1, "number": "x"}).encode()):
        await bench.broker.append([Draft("!canary", body, unix_ms(), Retention(0))])
    assert bench.canary.fault is None
    await asyncio.sleep(0)
    await bench.canary.stop()
    await bench.canary.stop()
