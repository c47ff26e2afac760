"""Requests that a page of another site makes a browser send, with whatever the browser adds by itself."""

import base64
import time
from typing import Any

import jwt
import pytest
from aiohttp import web

from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.issuer import serving

SECRET = "s" * 32
APP = "https://app.example.com"
CONFIG: dict[str, Any] = {
    "auth": {
        "jwt": {"algorithms": ["HS256"], "secret": SECRET}, "tickets": {}, "cookie": "sid", "query": "access",
    },
    "cors": {"origins": [APP], "credentials": True},
    "limits": {"connections_per_user": 1},
    "channels": {"private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"}},
}  # fmt: skip


def token() -> str:
    return jwt.encode({"exp": time.time() + 60, "sub": "42", "channels": ["private"]}, SECRET)


def cookie() -> dict[str, str]:
    return {"Cookie": f"sid={token()}"}


def fetched(site: str, mode: str, **more: str) -> dict[str, str]:
    return {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, **more}


EMBEDDED = {
    "an image, script or style sheet": fetched("cross-site", "no-cors", **{"Sec-Fetch-Dest": "image"}),
    "a link, form or frame": fetched("cross-site", "navigate", **{"Sec-Fetch-Dest": "iframe"}),
    "a WebSocket": fetched("cross-site", "websocket"),
    "an image of a neighbour": fetched("same-site", "no-cors"),
    "a frame of a neighbour": fetched("same-site", "navigate"),
    "no mode": {"Sec-Fetch-Site": "cross-site"},
}

OWN = {
    "an EventSource of a page that may": fetched("cross-site", "cors", Origin=APP),
    "one of a neighbour that may": fetched("same-site", "cors", Origin=APP),
    "one of the same origin": fetched("same-origin", "cors"),
    "a user who typed it": fetched("none", "navigate"),
    "no browser": {},
}

PATHS = {"front": "/events/private?client=tab", "aiohttp": "/events/%70rivate?client=tab"}
"""The second is not plainly for a stream, so aiohttp has it."""


@pytest.mark.parametrize("way", PATHS)
async def test_no_other_site_opens_a_stream_by_a_users_cookie(way: str) -> None:
    """Each would use up the user's quota, and ``client=`` would end the stream that the user reads."""
    async with gateway_running(CONFIG) as gateway:
        stream = await gateway.subscribe(PATHS[way], cookie())
        for name, headers in EMBEDDED.items():
            other = await gateway.open(PATHS[way], {**cookie(), **headers})
            assert (other.status, "cross_origin" in (await other.rest()).decode()) == (403, True), name
        await gateway.post("p", "1")
        assert (await stream.next()).json["payload"] == 1, "the user reads on"
        assert await gateway.metric('refused_total{reason="cross_origin"}') == len(EMBEDDED)
        stream.close()
        for name, headers in OWN.items():
            await eventually(lambda: not gateway.daemon.streams.active)
            own = await gateway.open(PATHS[way], {**cookie(), **headers})
            assert own.status == 200, name
            own.close()


async def test_what_a_page_names_itself_it_may_send() -> None:
    """A ticket or token in the URL proves that the page was given it; public channels need no proof."""
    async with gateway_running(CONFIG | {"limits": {"connections_per_user": 100}}) as gateway:
        bearer = {"Authorization": f"Bearer {token()}"}
        async with gateway.session.post(f"{gateway.url}/tickets?channel=private", headers=bearer) as answer:
            ticket = (await answer.json())["ticket"]
        for headers in EMBEDDED.values():
            await gateway.subscribe("/events/orders", {**cookie(), **headers})
            await gateway.subscribe(f"/events/private?ticket={ticket}", {**cookie(), **headers})
            await gateway.subscribe(f"/events/private?access={token()}", headers)
            stream = await gateway.open(f"/events/private?access={token()}", {**cookie(), **headers})
            assert stream.status == 403, "the cookie would win"


async def test_no_other_site_makes_the_endpoint_let_a_user_in() -> None:
    """Forward auth may decide by cookies, by saved passwords, or by what a proxy adds for a session."""
    asked = []

    async def let_in(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request)
        return web.Response()

    async with serving(let_in) as url:
        config = {
            "auth": {"forward": {"url": url}},
            "channels": {"room": {"from": [{"source": "hooks", "topic": "r"}], "access": "forward"}},
        }
        async with gateway_running(config) as gateway:
            for headers in EMBEDDED.values():
                for given in ({"Cookie": "a=b"}, {"Authorization": "Basic dTpw"}, {}):
                    stream = await gateway.open("/events/room", {**headers, **given})
                    assert stream.status == 403
            assert not asked
            for headers in ({"Authorization": "Bearer t"}, fetched("same-origin", "cors", Cookie="a=b")):
                await gateway.subscribe("/events/room", headers)


async def test_no_other_site_buys_a_ticket_or_answers_a_heartbeat(gateway: Gateway) -> None:
    """A form posts without a preflight; it names its Origin, and has no token in a header."""
    async with gateway_running(CONFIG | {"ack": {"interval": "1s", "timeout": "1s"}}) as own:
        stream = await own.subscribe("/events/private", cookie())
        connection = next(iter(own.daemon.streams.active)).id
        for headers in EMBEDDED.values():
            for path in ("/tickets?channel=private", f"/streams/{connection}/ack"):
                form = {**cookie(), **headers, "Origin": "https://evil.example", "Content-Type": "text/plain"}
                async with own.session.post(f"{own.url}{path}", data="x", headers=form) as answer:
                    assert answer.status == 403, path
            async with own.session.post(
                f"{own.url}/tickets?channel=private", headers={**cookie(), **headers}
            ) as answer:
                assert answer.status == 403
        assert stream.status == 200


async def test_no_other_site_posts_by_what_a_browser_proves_itself() -> None:
    """A form on any page could publish with the password that a browser remembers, or from where it stands."""
    basic = base64.b64encode(b"user:password-of-mine").decode()
    sources = {
        "basic": {"type": "webhook", "verify": {"basic": ["user:password-of-mine"]}, "topic": "orders"},
        "bearer": {"type": "webhook", "verify": {"bearer": ["b" * 32]}, "topic": "orders"},
    }
    given = {
        "hooks": {},
        "basic": {"Authorization": f"Basic {basic}"},
        "bearer": {"Authorization": f"Bearer {'b' * 32}"},
    }
    async with gateway_running({"sources": sources, "channels": {"orders": {"from": [
        {"source": name, "topic": "orders"} for name in given
    ]}}}) as gateway:  # fmt: skip
        for name, proof in given.items():
            url = f"{gateway.url}/hooks/{name}?topic=orders"
            for headers in (*EMBEDDED.values(), fetched("cross-site", "cors", Origin="https://evil.example")):
                async with gateway.session.post(url, data="1", headers={**proof, **headers}) as answer:
                    assert answer.status == (200 if name == "bearer" else 403), name
                    assert name == "bearer" or (await answer.json())["error"] == "cross_origin"
            for headers in OWN.values():
                if headers.get("Sec-Fetch-Site") in (None, "none", "same-origin"):
                    async with gateway.session.post(url, data="1", headers={**proof, **headers}) as answer:
                        assert answer.status == 200, name
