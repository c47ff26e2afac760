"""Limits of one user, over all nodes, and what becomes of them when a node dies."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.broker.shared_store import QuotaSlot
from gateway.streams.quotas import user_quotas as users
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}},
    "limits": {"connections_per_user": 2},
    "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
}


def bearer(subject: str, **claims: Any) -> dict[str, str]:
    base = {"exp": time.time() + 86_400, "sub": subject, "channels": ["private"]}
    return {"Authorization": f"Bearer {jwt.encode({**base, **claims}, SECRET)}"}


async def reason(gateway: Gateway, subject: str, path: str = "/events/private", **claims: Any) -> str:
    first = await (await gateway.open(path, bearer(subject, **claims))).next()
    return "open" if first.type == "stream.open" else str(first.json["reason"])


@pytest.fixture(params=["redis", "sqlite"])
def shared(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> dict[str, Any]:
    """The configuration of nodes that share a log."""
    url = redis.url if request.param == "redis" else f"sqlite:///{tmp_path}/log.db"
    return {**CONFIG, "broker": {"url": url, "timeout": "1m"}}


async def test_streams_of_one_user() -> None:
    """Tokens may differ; the subject counts. Public channels ask for nobody."""
    async with gateway_running(CONFIG) as gateway:
        assert [await reason(gateway, "1", jti=str(n)) for n in range(3)] == ["open", "open", "user_limit"]
        assert await reason(gateway, "2") == "open"
        assert await reason(gateway, "1", "/events/orders") == "open"
        gateway.streams[0].close()
        await eventually(lambda: len(gateway.daemon.streams.active) == 3)
        assert await reason(gateway, "1") == "open"


async def test_two_issuers_name_two_users() -> None:
    """Subject 1 of one issuer is not subject 1 of the other."""
    names = {users.user_key("1", issuer) for issuer in (None, "https://a", "https://b")}
    assert len(names) == 3


async def test_the_limit_holds_over_all_nodes(shared: dict[str, Any]) -> None:
    """A balancer spreads a user's streams."""
    async with gateway_running(shared) as one, gateway_running(shared) as two:
        assert [await reason(one, "1"), await reason(two, "1")] == ["open", "open"]
        assert [await reason(one, "1"), await reason(two, "1")] == ["user_limit", "user_limit"]
        assert await reason(two, "2") == "open"
        one.streams[0].close()

        async def has_room() -> bool:
            return await reason(two, "1") == "open"

        await eventually(has_room)


async def test_a_burst_over_two_nodes_gets_exactly_the_limit(shared: dict[str, Any]) -> None:
    """The board decides one after the other, whoever asks at once."""
    async with gateway_running(shared) as one, gateway_running(shared) as two:
        got = await asyncio.gather(*(reason(node, "1") for _ in range(10) for node in (one, two)))
        assert got.count("open") == 2
        assert set(got) == {"open", "user_limit"}
        for node in (one, two):
            await eventually(partial(_has_no_place, node))


async def test_a_dead_node_takes_nothing_along(
    shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its seats expire; those of living streams are kept."""
    monkeypatch.setattr(users, "RENEW_INTERVAL_SECONDS", 0.1)
    async with gateway_running(shared) as one, gateway_running(shared) as other:
        async with gateway_running(shared) as dead:
            assert [await reason(one, "1"), await reason(dead, "1")] == ["open", "open"]
            dead_places = _places(dead)
            # As by SIGKILL: nothing is given back.
            dead.daemon.limits.users._task.cancel()  # type: ignore[union-attr]
            dead.daemon.limits.users._task = None
        assert await reason(other, "1") == "user_limit"
        living = one.daemon.limits.users
        renewed = 0
        renew = living._renew_slots

        async def counted() -> None:
            nonlocal renewed
            await renew()
            renewed += 1

        async def a_minute_passes() -> None:
            """Let all seats of now expire, and those of streams that live be asked for again."""
            seats = [QuotaSlot(*place, None) for place in (*_places(one), *dead_places)]
            await living._shared_store.acquire_slots(seats, 0.001)
            before = renewed
            await eventually(lambda: renewed > before + 1)

        monkeypatch.setattr(living, "_renew_slots", counted)
        await a_minute_passes()
        assert [await reason(other, "1") for _ in range(2)] == ["open", "user_limit"]


async def test_a_log_that_is_away_refuses_nobody(redis: RedisServer) -> None:
    """Each node counts alone, until the log is back."""
    config = {**CONFIG, "broker": {"url": redis.url, "timeout": "300ms"}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        assert await reason(one, "1") == "open"
        redis.kill()
        assert [await reason(two, "1") for _ in range(3)] == ["open", "open", "user_limit"]


async def test_null_is_no_limit() -> None:
    """And costs no question."""
    async with gateway_running(CONFIG) as gateway:
        gateway.daemon.limits.users.limit = None
        assert [await reason(gateway, "1") for _ in range(5)] == ["open"] * 5


def _places(node: Gateway) -> list[tuple[str, str]]:
    """Return user and member of each stream that a node counts."""
    return [(seat.name, seat.member) for seat in node.daemon.limits.users._held_slots()]


def _has_no_place(node: Gateway) -> bool:
    return not node.daemon.streams._reserved_count
