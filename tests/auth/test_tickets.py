"""Tickets: what a browser's own EventSource can use in place of a header."""

import time
from typing import Any

import jwt
import pytest

from gateway.auth import tickets
from gateway.auth.grant import Grant
from gateway.auth.revocation import RecentRevocations
from gateway.auth.tickets import TicketStore
from gateway.broker.memory_shared_store import MemorySharedStore
from gateway.core.clock import unix_ms
from gateway.core.errors import Unauthorized
from tests.support.gateway import Gateway, gateway_running
from tests.support.redis import RedisServer

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET}, "tickets": {"lifetime": "5m"}},
    "cors": {"origins": ["https://app.example.com"]},
    "channels": {
        "private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"},
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u.{id}"}],
            "access": {"claims": {"sub": "{id}"}},
        },
    },
}


def bearer(**claims: Any) -> dict[str, str]:
    base = {"exp": time.time() + 86_400, "sub": "42", "channels": ["private"]}
    merged = {name: value for name, value in {**base, **claims}.items() if value is not None}
    return {"Authorization": f"Bearer {jwt.encode(merged, SECRET)}"}


async def buy(gateway: Gateway, query: str, headers: dict[str, str]) -> tuple[int, dict[str, Any], Any]:
    async with gateway.session.post(f"{gateway.url}/tickets{query}", headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers


async def ticket(gateway: Gateway, query: str = "?channel=private,user.42", **claims: Any) -> str:
    status, answer, _ = await buy(gateway, query, bearer(**claims))
    assert status == 201, answer
    return str(answer["ticket"])


async def test_a_ticket_opens_its_channels_again_and_again() -> None:
    """The browser reconnects with the same URL, so one use must not be the last."""
    async with gateway_running(CONFIG) as gateway:
        status, answer, headers = await buy(gateway, "?channel=private&channel=user.42", bearer())
        assert status == 201
        assert answer["channels"] == ["private", "user.42"]
        assert 290 < answer["expires_in"] <= 300
        assert headers["Cache-Control"] == "no-store"
        for _ in range(2):
            stream = await gateway.subscribe(f"/events?channel=private,user.42&ticket={answer['ticket']}")
            await gateway.post("u.42", "1")
            assert (await stream.next()).json["channel"] == "user.42"


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("?channel=private", {}, 401, "missing_token"),
        ("?channel=private", {"Authorization": "Bearer nonsense"}, 401, "invalid_token"),
        ("?channel=user.43", bearer(), 403, "channel_forbidden"),
        ("?channel=private", bearer(channels=[]), 403, "channel_forbidden"),
        ("?channel=nothing", bearer(), 404, "unknown_channel"),
        ("", bearer(), 400, "no_channel"),
        ("?channel=private", {**bearer(), "Origin": "https://evil.example"}, 403, "origin_refused"),
    ],
)
async def test_who_gets_none(query: str, headers: dict[str, str], status: int, code: str) -> None:
    """A ticket is worth as much as its token, and no more."""
    async with gateway_running(CONFIG) as gateway:
        got, answer, _ = await buy(gateway, query, headers)
        assert (got, answer["error"]) == (status, code)


async def test_what_a_ticket_does_not_open() -> None:
    """Channels that it was not bought for, forged ones, and other routes."""
    async with gateway_running(CONFIG) as gateway:
        bought = await ticket(gateway, "?channel=private")
        for path, status in (
            (f"/events/user.42?ticket={bought}", 403),
            (f"/events?channel=private,user.42&ticket={bought}", 403),
            (f"/events/private?ticket={bought[:-1]}", 401),
            ("/events/private?ticket=", 401),
            (f"/events/orders?ticket={bought}", 200),
        ):
            assert (await gateway.open(path)).status == status, path


async def test_a_ticket_ends_with_its_time_and_with_its_token() -> None:
    """Whichever is first; a stream that it opened lives as long as the token."""
    async with gateway_running(
        {**CONFIG, "auth": {**CONFIG["auth"], "tickets": {"lifetime": "1ms"}}}
    ) as gateway:
        bought = await ticket(gateway, "?channel=private")
        while (await gateway.open(f"/events/private?ticket={bought}")).status == 200:
            pass
    async with gateway_running(CONFIG) as gateway:
        _, answer, _ = await buy(gateway, "?channel=private", bearer(exp=time.time() + 10))
        assert answer["expires_in"] < 10 + 31  # its leeway counts


async def test_pages_may_buy_one_by_fetch() -> None:
    """The preflight of a POST with Authorization is answered before auth, for this path only."""
    asked = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    async with gateway_running(CONFIG) as gateway:
        for path, status in (("/tickets?channel=private", 200), ("/events/private", 403)):
            async with gateway.session.options(gateway.url + path, headers=asked) as answer:
                assert answer.status == status
        got, _, headers = await buy(gateway, "?channel=private", {**bearer(), "Origin": asked["Origin"]})
        assert got == 201
        assert headers["Access-Control-Allow-Origin"] == asked["Origin"]
        assert headers["Vary"] == "Origin"
        got, _, headers = await buy(gateway, "?channel=private", {"Origin": asked["Origin"]})
        assert (got, headers["Access-Control-Allow-Origin"]) == (401, asked["Origin"])


async def test_there_are_none_unless_the_file_says_so(gateway: Gateway) -> None:
    """Off by default."""
    async with gateway.session.post(f"{gateway.url}/tickets?channel=orders") as answer:
        assert answer.status == 404


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_any_node_honours_a_ticket(kind: str, redis: RedisServer, tmp_path: Any) -> None:
    """A balancer sends the browser wherever it likes; the log's storage holds no ticket in the clear."""
    url = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/log.db"
    config = {**CONFIG, "broker": {"url": url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        bought = await ticket(one, "?channel=private")
        await two.subscribe(f"/events/private?ticket={bought}")
        if kind == "sqlite":
            assert bought.encode() not in b"".join(
                file.read_bytes() for file in tmp_path.glob("log.db*") if file.is_file()
            )
        # Ending the subject ends its tickets on all of them, one that was used here before too.
        await two.subscribe(f"/events/private?ticket={await ticket(two, '?channel=private', sub='43')}")
        stream = await two.subscribe(f"/events/private?ticket={bought}")
        async with one.session.delete(
            f"http://127.0.0.1:{one.daemon.admin_listener.port}/streams?subject=42"
        ) as answer:
            assert answer.status == 202
        assert (await stream.next()).json["reason"] == "revoked"
        for node in (one, two):
            assert (await node.open(f"/events/private?ticket={bought}")).status == 401
        assert (
            await two.open(f"/events/private?ticket={await ticket(one, '?channel=private')}")
        ).status == 200


async def test_ending_tickets_compares_no_clocks() -> None:
    """Two nodes never agree on the time; a ticket that was revoked on one would be valid on the other."""
    board = MemorySharedStore(unix_ms)
    ahead, behind = (
        TicketStore(board, 60.0, RecentRevocations(), lambda off=off: time.time() + off)  # type: ignore[misc]
        for off in (3.0, -3.0)
    )
    grant = Grant(subject="42", claims={})
    old = [(await node.issue(grant, ["a"], None)).value for node in (ahead, behind)]
    await behind.revoke("42")
    new = [(await node.issue(grant, ["a"], None)).value for node in (ahead, behind)]
    for node in (ahead, behind):
        node.clear_cache()
        for text in old:
            with pytest.raises(Unauthorized, match="revoked"):
                await node.resolve(text)
        for text in new:
            assert (await node.resolve(text)).opened == {"a"}


async def test_a_subject_has_so_many_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tenant must not push out the tickets of the others."""
    monkeypatch.setattr(tickets, "MAX_TICKETS_PER_SUBJECT", 2)
    async with gateway_running(CONFIG) as gateway:
        got = [(await buy(gateway, "?channel=private", bearer()))[0] for _ in range(3)]
        assert got == [201, 201, 429]
        assert (await buy(gateway, "?channel=private", bearer(sub="43")))[0] == 201
        others = [bearer(sub=None) | {"X-Forwarded-For": "192.0.2.1"} for _ in range(3)]
        assert [(await buy(gateway, "?channel=private", each))[0] for each in others] == [201, 201, 429]


async def test_a_name_that_has_no_bytes_is_a_401() -> None:
    """JSON may spell half a character; nothing can be stored under it."""
    async with gateway_running(CONFIG) as gateway:
        status, answer, _ = await buy(gateway, "?channel=private", bearer(sub="\ud800"))
        assert (status, answer["error"]) == (401, "invalid_token")
