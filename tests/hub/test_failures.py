"""Faults in the middle of a delivery: streams get every event once, in order, or a gap."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.hub.audience import Audience
from gateway.hub.hub import Hub
from gateway.hub.replay import Replay
from tests.support.gateway import Gateway, eventually, gateway_running

CONFIG: dict[str, Any] = {
    "channels": {
        "live": {"from": [{"source": "hooks", "topic": "live"}], "access": "public", "history": "none"}
    },
}


def once(function: Callable[..., Any], when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
    """Return a function that raises in place of one call."""
    left = [True]

    def wrapped(*arguments: Any) -> Any:
        if left[0] and when(*arguments):
            left[0] = False
            raise ValueError("a fault")
        return function(*arguments)

    return wrapped


async def burst(gateway: Gateway, topics: list[str], first: int) -> None:
    """Post at once, so that they come to the hub in one batch."""
    await asyncio.gather(*(gateway.post(topic, str(first + n)) for n, topic in enumerate(topics)))


@pytest.mark.parametrize("place", ["first", "middle", "behind"])
@pytest.mark.parametrize("log", ["memory", "sqlite"])
async def test_an_event_that_cannot_be_filed_is_read_from_the_log(
    log: str, place: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One event in the middle of a batch must not take the rest along, nor reach anybody twice."""
    over = dict(CONFIG)
    if log == "sqlite":
        over["broker"] = {"url": f"sqlite:///{tmp_path}/log.db"}
    async with gateway_running(over) as gateway:
        one = await gateway.subscribe("/events?channel=orders&channel=stock")
        two = await gateway.subscribe("/events?channel=orders")
        await burst(gateway, ["orders", "stock"] * 5, 0)

        def is_meant(*arguments: Any) -> bool:
            return bool(arguments[1].event.payload in (b"14", b"15"))

        name, owner = {
            "first": ("_enqueue", Hub),
            "middle": ("enqueue", Audience),
            "behind": ("_drop_backlog", Hub),
        }[place]
        if place == "behind":  # after the event was filed: an audience that is flooded
            monkeypatch.setattr(Audience, "is_flooded", property(lambda self: True))
            monkeypatch.setattr(Hub, name, once(Hub._drop_backlog))
        else:
            monkeypatch.setattr(owner, name, once(getattr(owner, name), is_meant))
        await burst(gateway, ["orders", "stock"] * 5, 10)
        if place == "behind":
            monkeypatch.undo()
        await burst(gateway, ["orders", "stock"] * 5, 20)
        got = {
            stream: [int((await stream.until("message")).json["payload"]) for _ in range(count)]
            for stream, count in ((one, 30), (two, 15))
        }
        assert sorted(got[one]) == list(range(30))
        assert sorted(got[two]) == list(range(0, 30, 2))
        ids = [message.id for message in one.messages if message.type == "message"]
        assert ids == sorted(ids, key=lambda id: tuple(map(int, id.split("-"))))
        assert await gateway.metric('background_failures_total{task="hub"}') == 1
        assert (await gateway.admin("/readyz"))[0] == 200


async def test_an_event_without_history_that_cannot_be_filed_is_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody can read it again, so the stream must say so."""
    async with gateway_running(CONFIG) as gateway:
        stream = await gateway.subscribe("/events/live")
        await gateway.post("live", "1")
        assert (await stream.next()).json["payload"] == 1
        monkeypatch.setattr(Hub, "_enqueue", once(Hub._enqueue))
        await gateway.post("live", "2")
        assert (await stream.next()).type == "stream.gap"
        await gateway.post("live", "3")
        assert (await stream.next()).json["payload"] == 3


async def test_a_stream_that_cannot_be_put_behind_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no audience and behind nothing, it would get no event for ever, and heartbeats that say all is well."""
    async with gateway_running(CONFIG) as gateway:
        streams = [await gateway.subscribe("/events/orders") for _ in range(3)]
        monkeypatch.setattr(gateway.daemon.hub, "on_lagging", once(gateway.daemon.hub.on_lagging))
        gateway.daemon.hub.handle_log_gap(gateway.daemon.hub.head)
        await eventually(lambda: len(gateway.daemon.streams.active) == 2)
        await gateway.post("orders", "1")
        ends = [await stream.next() for stream in streams]
        assert sorted(each.type for each in ends) == ["message", "message", "stream.close"]


async def test_work_that_fails_does_not_stop_the_pump(monkeypatch: pytest.MonkeyPatch) -> None:
    """All deliveries go through it."""
    async with gateway_running(CONFIG) as gateway:
        stream = await gateway.subscribe("/events/orders")
        monkeypatch.setattr(Audience, "write_slice", once(Audience.write_slice))
        await gateway.post("orders", "1")
        assert (await stream.next()).json["payload"] == 1
        monkeypatch.setattr(Replay, "_replay_page", once(Replay._replay_page))
        late = await gateway.subscribe("/events/orders?last=1")
        await gateway.post("orders", "2")
        assert (await stream.next()).json["payload"] == 2
        assert (await late.next()).type in ("message", "stream.close")
        assert await gateway.metric('background_failures_total{task="pump"}') >= 1
