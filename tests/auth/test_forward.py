"""Forward auth: an endpoint of the user's decides, and its troubles are not the clients'."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from aiohttp import web

from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

pytestmark = pytest.mark.idle_clock


class Endpoint:
    """Says what a test wants, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = None
        self.asked: list[web.BaseRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.most = self.now = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.gate.wait()
        self.now -= 1
        text = self.body if isinstance(self.body, str) else "" if self.body is None else json.dumps(self.body)
        headers = {"Location": "/login"} if self.status == 302 else {}
        return web.Response(status=self.status, text=text, headers=headers)


@asynccontextmanager
async def deciding(
    channels: dict[str, Any] | None = None, **over: Any
) -> AsyncIterator[tuple[Gateway, Endpoint]]:
    endpoint = Endpoint()
    secret = "s" * 32
    async with serving(endpoint.handle) as url:
        config = {
            "auth": {
                "jwt": {"algorithms": ["HS256"], "secret": secret},
                "forward": {"url": f"{url}/check?app=1", **over},
            },
            "channels": {
                "room.{id}": {"from": [{"source": "hooks", "topic": "r.{id}"}], "access": "forward"},
                "private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"},
                **(channels or {}),
            },
        }
        async with gateway_running(config) as gateway:
            yield gateway, endpoint


async def test_the_endpoint_sees_what_it_needs() -> None:
    """Credentials, channels, path and query; not the resume point, which differs with each reconnect."""
    async with deciding() as (gateway, endpoint):
        path = "/events?channel=room.1,orders,room.2&lastEventId=1-0&x=y"
        await gateway.subscribe(path, {"Authorization": "Bearer t", "Cookie": "a=b", "X-Other": "no"})
        (asked,) = endpoint.asked
        assert asked.query.getall("channel") == ["room.1", "room.2"]
        assert asked.query["app"] == "1"
        assert asked.headers["Authorization"] == "Bearer t"
        assert asked.headers["Cookie"] == "a=b"
        assert "X-Other" not in asked.headers
        assert asked.headers["X-Original-URI"] == "/events?channel=room.1,orders,room.2&x=y"
        assert asked.headers["X-Original-Method"] == "GET"
        assert asked.headers["X-Forwarded-For"] == "127.0.0.1"


async def test_credentials_that_are_not_for_the_endpoint_are_kept_from_it() -> None:
    """Whoever reads the endpoint's log could use them; and each ticket would be another question."""
    secret = "s" * 32
    token = jwt.encode({"exp": time.time() + 60, "channels": ["private"]}, secret)
    auth = {"jwt": {"algorithms": ["HS256"], "secret": secret}, "tickets": {}, "query": "access"}
    async with deciding() as (gateway, endpoint):
        await gateway.reconfigure({"auth": auth})
        bearer = {"Authorization": f"Bearer {token}"}
        for path, headers, expected in (
            # A header wins.
            ("/events/room.1?ticket=t1&x=y&%74icket=t2&access=t3", bearer, "/events/room.1?x=y"),
            # The gateway itself uses it, for the other channel.
            (f"/events?channel=room.2,private&access={token}", {}, "/events?channel=room.2,private"),
            # It is the request's credential, and the endpoint's to look at.
            ("/events/room.3?access=t4", {}, "/events/room.3?access=t4"),
        ):
            await gateway.subscribe(path, headers)
            assert endpoint.asked[-1].headers["X-Original-URI"] == expected
        answer = await gateway.session.post(
            f"{gateway.url}/tickets?channel=room.4&access=t5&ticket=t6", headers=bearer
        )
        assert answer.status == 201
        assert endpoint.asked[-1].headers["X-Original-URI"] == "/tickets?channel=room.4"
        asked = len(endpoint.asked)
        await gateway.subscribe("/events/room.1?ticket=t7&x=y", bearer)
        assert len(endpoint.asked) == asked, "another ticket is no other question"


ANSWERS: list[tuple[int, Any, int | str]] = [
    (200, None, 200),
    (204, None, 200),
    (200, {"subject": "7"}, 200),
    (200, {"channels": ["room.*"]}, 200),
    (200, {"channels": ["room.2"]}, 403),
    (200, {"channels": []}, 403),
    (401, None, 401),
    (403, "<html>no</html>", 403),
    (200, "<html>welcome</html>", "auth_unavailable"),
    (200, {"channels": "room.1"}, "auth_unavailable"),
    (200, {"allowed": False}, "auth_unavailable"),
    (200, {}, "auth_unavailable"),
    (200, [], "auth_unavailable"),
    (200, "[" * 100_000, "auth_unavailable"),
    (200, {"subject": "7", "allowed": True}, 200),
    (200, "x" * 300_000, "auth_unavailable"),
    (302, None, "auth_unavailable"),
    (400, None, 403),
    (404, None, 403),
    (431, None, 403),
    (408, None, "auth_unavailable"),
    (200, {"expires": 5}, 403),
    (200, {"expires_in": -5}, 403),
    (429, None, "auth_unavailable"),
    (500, None, "auth_unavailable"),
]
"""Status and body of the endpoint, and the status of the stream, or the reason with which it closes."""


async def test_answers() -> None:
    """2xx opens, 401 and 403 refuse; a page that says 200 to everybody, or a redirect, is no decision."""
    async with deciding() as (gateway, endpoint):
        for number, (endpoint.status, endpoint.body, expected) in enumerate(ANSWERS):
            case = (endpoint.status, str(endpoint.body)[:50])
            stream = await gateway.open("/events/room.1", {"Cookie": str(number)})
            assert len(endpoint.asked) == number + 1
            if isinstance(expected, int):
                assert stream.status == expected, case
                assert expected != 401 or stream.headers["www-authenticate"] == "Bearer"
            else:
                closing = await stream.next()
                assert (closing.type, closing.json["reason"]) == ("stream.close", expected), case
            stream.close()


@pytest.mark.parametrize(("on_outage", "expected"), [("retry", 200), ("refuse", 403), ("open", 200)])
async def test_an_outage_has_the_answer_that_the_file_says(on_outage: str, expected: int) -> None:
    """A dead endpoint, and one that does not answer in time."""
    async with deciding(on_outage=on_outage, timeout="100ms") as (gateway, endpoint):
        endpoint.gate.clear()
        stream = await gateway.open("/events/room.1")
        assert stream.status == expected
        if expected == 200:
            assert (await stream.next()).type == ("stream.open" if on_outage == "open" else "stream.close")
        assert await gateway.metric('forward_auth_total{result="unavailable"}') == 1
        endpoint.gate.set()


async def test_an_endpoint_that_answers_opens_nothing_without_a_decision() -> None:
    """on_outage: open is for one that is away: a login page or a 429 that a stranger caused must let nobody in."""
    async with deciding(on_outage="open") as (gateway, endpoint):
        for number, (endpoint.status, endpoint.body, expected) in enumerate(ANSWERS):
            case = (endpoint.status, str(endpoint.body)[:50])
            stream = await gateway.open("/events/room.1", {"Cookie": str(number)})
            if isinstance(expected, int):
                assert stream.status == expected, case
            else:
                opened = (await stream.next()).type == "stream.open"
                assert opened == (endpoint.status >= 500), case
            stream.close()


async def test_answers_are_remembered_by_what_was_asked() -> None:
    """A reconnect asks nobody; another user, channel or address does."""
    async with deciding() as (gateway, endpoint):
        for _ in range(3):
            await gateway.subscribe("/events/room.1?lastEventId=1-0", {"Cookie": "a"})
        assert len(endpoint.asked) == 1
        await gateway.subscribe("/events/room.1", {"Cookie": "b"})
        await gateway.subscribe("/events/room.2", {"Cookie": "a"})
        await gateway.subscribe("/events/room.1", {"Cookie": "a", "X-Forwarded-For": "192.0.2.1"})
        assert len(endpoint.asked) == 4


async def test_without_a_cache_everybody_is_asked_about() -> None:
    """cache: null."""
    async with deciding(cache=None) as (gateway, endpoint):
        # merged() takes None for "leave it out", so the key is set here.
        object.__setattr__(gateway.daemon.config.auth.forward, "cache", None)  # type: ignore[union-attr]
        for count in (1, 2):
            await gateway.subscribe("/events/room.1")
            assert len(endpoint.asked) == count


async def test_questions_are_bounded_and_asked_once_for_a_herd() -> None:
    """The same question is one question; others wait for their turn."""
    async with deciding(connections=2, timeout="10s") as (gateway, endpoint):
        endpoint.gate.clear()
        same = [asyncio.create_task(gateway.open("/events/room.1")) for _ in range(10)]
        await eventually(lambda: len(endpoint.asked) == 1)
        others = [asyncio.create_task(gateway.open(f"/events/room.{number}")) for number in range(2, 9)]
        await eventually(lambda: endpoint.now == 2)
        endpoint.gate.set()
        streams = await asyncio.gather(*same, *others)
        assert {stream.status for stream in streams} == {200}
        assert (len(endpoint.asked), endpoint.most) == (8, 2)


async def test_a_stream_ends_when_the_endpoint_says() -> None:
    """``expires`` and ``expires_in`` are as good as a token's."""
    async with deciding(cache="1s") as (gateway, endpoint):
        streams = []
        for name, value in (("expires_in", 20.0), ("expires", time.time() + 20.0)):
            endpoint.body = {name: value}
            streams.append(await gateway.subscribe(f"/events/room.{len(endpoint.asked)}"))
        for stream in streams:
            assert (await stream.next()).json == {"reason": "token_expired", "reconnect": True}


async def test_a_stream_may_need_both() -> None:
    """A channel by token and one by the endpoint on one stream: both must say yes."""
    async with deciding() as (gateway, endpoint):
        token = jwt.encode({"exp": time.time() + 60, "channels": ["private"]}, "s" * 32)
        path = "/events?channel=private,room.1"
        assert (await gateway.open(path)).status == 401
        assert endpoint.asked == []
        assert (await gateway.open(path, {"Authorization": f"Bearer {token}"})).status == 200
        endpoint.status = 403
        other = {"Authorization": f"Bearer {token}", "Cookie": "other"}
        assert (await gateway.open(path, other)).status == 403


async def test_a_client_that_leaves_breaks_nothing() -> None:
    """Its question is finished for whoever asks next, and no place is kept."""
    async with deciding(timeout="10s") as (gateway, endpoint):
        endpoint.gate.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET /events/room.1 HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: endpoint.asked)
        writer.transport.abort()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 0)
        endpoint.gate.set()
        await gateway.subscribe("/events/room.1")
        assert len(endpoint.asked) == 1
        assert gateway.daemon.streams._reserved_count == 0


@pytest.mark.parametrize("path", ["/events/room.1?pad=" + "%5B" * 2000, "/events/room.1?pad=" + "[" * 7000])
async def test_no_client_can_make_an_outage(path: str) -> None:
    """With ``on_outage: open``, whoever could would let himself in."""
    async with deciding(on_outage="open") as (gateway, endpoint):
        endpoint.status = 403
        assert (await gateway.open(path)).status in (400, 403)
        assert all(len(asked.headers["X-Original-URI"]) <= 4096 for asked in endpoint.asked)
        for status in (400, 404, 414, 431):
            endpoint.status = status
            assert (await gateway.open(f"/events/room.{status}")).status == 403


async def test_what_is_asked_is_what_was_sent() -> None:
    """An endpoint that decides by path and query must see those of the request, whatever its form."""
    async with deciding() as (gateway, endpoint):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(b"GET http://evil.example/events/room.1?a=%5b[ HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"stream.open")
        assert [asked.headers["X-Original-URI"] for asked in endpoint.asked] == ["/events/room.1?a=%5b["]
        writer.transport.abort()


async def test_one_address_leaves_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions wait for each other; too many are told to come back, and nobody is let in for it."""
    monkeypatch.setattr("gateway.auth.forward.MAX_PENDING_REQUESTS", 10)
    async with deciding(connections=4, timeout="10s", on_outage="open") as (gateway, endpoint):
        endpoint.gate.clear()
        stranger = {"X-Forwarded-For": "192.0.2.1"}
        opening = [
            asyncio.create_task(gateway.open("/events/room.1", {**stranger, "Cookie": str(number)}))
            for number in range(5)
        ]
        await eventually(
            lambda: gateway.daemon.public_listener.request_connections == 5 and endpoint.now == 2
        )
        refused = await gateway.open("/events/room.1", {**stranger, "Cookie": "one too many"})
        assert (await refused.next()).json["reason"] == "auth_unavailable"
        opening.pop().cancel()
        await eventually(lambda: gateway.daemon.public_listener.request_connections == 4)
        other = asyncio.create_task(gateway.open("/events/room.1", {"X-Forwarded-For": "192.0.2.2"}))
        await eventually(lambda: endpoint.now == 3)
        endpoint.gate.set()
        assert {stream.status for stream in await asyncio.gather(*opening, other)} == {200}


async def throw_out(gateway: Gateway, query: str = "?subject=42") -> None:
    async with gateway.session.delete(
        f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/streams{query}"
    ) as answer:
        assert answer.status == 202


async def test_an_answer_from_before_somebody_was_thrown_out_opens_nothing() -> None:
    """The endpoint decided before the ban and answers after it; and what was remembered is forgotten."""
    async with deciding(timeout="10s") as (gateway, endpoint):
        endpoint.body = {"subject": "42"}
        endpoint.gate.clear()
        opening = asyncio.create_task(gateway.open("/events/room.1"))
        await eventually(lambda: endpoint.asked)
        await throw_out(gateway)
        endpoint.gate.set()
        stream = await opening
        kinds = [(await stream.next()).json.get("reason") for _ in range(2)]
        assert kinds == [None, "revoked"]
        endpoint.status = 403
        assert (await gateway.open("/events/room.1")).status == 403
        assert len(endpoint.asked) == 2


async def test_a_remembered_answer_need_not_name_anybody() -> None:
    """The token named the subject, and the endpoint only said yes."""
    async with deciding() as (gateway, endpoint):
        token = jwt.encode({"exp": time.time() + 60, "sub": "42", "channels": ["private"]}, "s" * 32)
        right = {"Authorization": f"Bearer {token}"}
        await gateway.subscribe("/events?channel=private,room.1", right)
        await throw_out(gateway)
        endpoint.status = 403
        assert (await gateway.open("/events?channel=private,room.1", right)).status == 403
