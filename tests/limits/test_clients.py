"""``client=``: a stream that its client has lost makes room for the new one."""

import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "limits": {"connections_per_user": 1, "connections_per_address": 1, "connections": 1},
    "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
}


def bearer(subject: str) -> dict[str, str]:
    token = jwt.encode({"exp": time.time() + 600, "sub": subject, "channels": ["private"]}, SECRET)
    return {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.0.2.1"}


async def closing(stream: Stream) -> dict[str, Any]:
    message = await stream.next()
    assert message.type == "stream.close"
    return dict(message.json)


async def test_a_reconnect_is_never_refused_because_of_its_own_ghost() -> None:
    """With every limit at one, a client that lost its stream gets the next one at once."""
    async with gateway_running(CONFIG) as gateway:
        ghost = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        again = await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        assert await closing(ghost) == {"reason": "replaced", "reconnect": False}
        await eventually(lambda: len(gateway.daemon.streams.open) == 1)
        await gateway.subscribe("/events/private?client=tab-1", bearer("1"))
        assert (await closing(again))["reason"] == "replaced"
        assert await gateway.metric('disconnects_total{reason="replaced"}') == 2


async def test_without_a_name_a_ghost_counts() -> None:
    """The limits hold for those who do not say who they are."""
    async with gateway_running(CONFIG) as gateway:
        await gateway.subscribe("/events/private", bearer("1"))
        assert (await closing(await gateway.open("/events/private", bearer("1"))))[
            "reason"
        ] == "address_limit"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (bearer("1"), bearer("2")),
        ({"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}),
    ],
)
async def test_nobody_ends_the_stream_of_another(first: dict[str, str], second: dict[str, str]) -> None:
    """A name is one's own: of a user, or without one of an address."""
    config = {**CONFIG, "limits": {}}
    path = "/events/private?client=tab" if "Authorization" in first else "/events/orders?client=tab"
    async with gateway_running(config) as gateway:
        stream = await gateway.subscribe(path, first)
        await gateway.subscribe(path, second)
        await gateway.post("p" if "Authorization" in first else "orders", "1")
        assert (await stream.next()).type != "stream.close"


async def test_a_stream_that_ends_leaves_the_newer_one_alone() -> None:
    """The ghost's own end, late, must not take its successor's place along."""
    async with gateway_running(CONFIG) as gateway:
        ghost = await gateway.subscribe("/events/private?client=t", bearer("1"))
        await gateway.subscribe("/events/private?client=t", bearer("1"))
        ghost.close()
        await eventually(lambda: len(gateway.daemon.streams.open) == 1)
        assert len(gateway.daemon.limits.clients) == 1
        assert (await closing(await gateway.open("/events/private?client=u", bearer("1"))))[
            "reason"
        ] == "address_limit"


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_a_newer_stream_on_another_node_replaces_too(
    kind: str, redis: RedisServer, tmp_path: Path
) -> None:
    """A balancer sends the reconnect elsewhere; the seat is the same, so it is never in its own way."""
    url = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/log.db"
    config = {**CONFIG, "broker": {"url": url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        nodes: list[Gateway] = [one, two]
        stream = await one.subscribe("/events/private?client=t", bearer("1"))
        for turn in range(4):
            newer = await nodes[(turn + 1) % 2].subscribe("/events/private?client=t", bearer("1"))
            assert (await closing(stream))["reason"] == "replaced"
            left = nodes[turn % 2].daemon.streams
            await eventually(lambda left=left: not left.open)  # type: ignore[misc]
            stream = newer


@pytest.mark.parametrize("name", ["", "x" * 129])
async def test_names_that_are_none(name: str) -> None:
    """400 says what a name is."""
    async with gateway_running(CONFIG) as gateway:
        stream = await gateway.open(f"/events/orders?client={name}")
        assert stream.status == 400
        assert b"client=" in await stream.rest()
