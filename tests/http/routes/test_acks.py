"""``POST /streams/{connection}/ack``: accepted and refused answers, and CORS."""

import json
from typing import Any

import pytest
from aiohttp import hdrs

from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.idle_clock

ACK: dict[str, Any] = {"ack": {"interval": "1s", "timeout": "30s", "retry_limit": 3}}
APP, SHOP, EVIL = "https://app.example.com", "https://shop.example.com", "https://evil.example.com"
PAGES: dict[str, Any] = {
    **ACK,
    "cors": {"origins": [APP], "credentials": True},
    "channels": {"stock": {"cors": {"origins": [SHOP]}}},
}


async def question(stream: Stream) -> tuple[str, str]:
    """Return the path to answer to, and the nonce."""
    connection = stream.messages[0].json["connection"]
    nonce = (await stream.until("stream.heartbeat")).json["nonce"]
    return f"/streams/{connection}/ack", nonce


async def answer(
    gateway: Gateway, path: str, body: Any = None, method: str = "POST", **headers: str
) -> tuple[int, str, Any]:
    """Send a request and return status, code of the error if there is one, and headers."""
    async with gateway.session.request(
        method, gateway.url + path, data=body, headers={**headers, "Content-Type": "text/plain"}
    ) as got:
        text = await got.text()
        return got.status, json.loads(text)["error"] if text else "", got.headers


async def test_an_answer_is_text_or_json() -> None:
    """A page sends the nonce as it is, which needs no preflight; a program may send the whole object back."""
    async with gateway_running(ACK) as gateway:
        stream = await gateway.subscribe("/events/orders")
        assert stream.messages[0].json["ack"] == {"interval": 1000, "timeout": 30000, "retry_limit": 3}
        path, nonce = await question(stream)
        for body in (nonce, f"{nonce}\n", json.dumps({"nonce": nonce})):
            status, _, headers = await answer(gateway, path, body)
            assert (status, headers["Cache-Control"]) == (204, "no-store")
        (asked,) = gateway.daemon.ack_tracker._states.values()
        assert asked._acknowledged == 1, "the same answer thrice is one"
        assert await gateway.metric('acks_total{result="local"}') == 3


async def test_what_is_no_answer() -> None:
    """Each has its own status, reaches no other node, and counts as no answer."""
    async with gateway_running(ACK) as gateway:
        stream, other = [await gateway.subscribe("/events/orders") for _ in range(2)]
        path, nonce = await question(stream)
        foreign, _ = await question(other)
        key, number, code = nonce.split("-")
        for where, body, status, error in (
            (foreign, nonce, 403, "unknown_nonce"),
            (path, f"{key}-{int(number) + 1}-{code}", 403, "unknown_nonce"),
            (path, f"00000000-{number}-{code}", 403, "unknown_nonce"),
            (path, f"{key}-{number}-{code[:-1]}x", 403, "unknown_nonce"),
            (path, f"{key}-0{number}-{code}", 403, "unknown_nonce"),
            (path, "", 403, "unknown_nonce"),
            (path, "é", 400, "bad_ack"),
            (path, '{"nonce": 7}', 400, "bad_ack"),
            (path, "[" * 400, 403, "unknown_nonce"),
            (path, "{" * 400, 400, "bad_ack"),
            (path, "x" * 600, 413, "too_large"),
            ("/streams/nobody/ack", nonce, 404, "not_found"),
            ("/streams/" + "A" * 24 + "/ack", nonce, 404, "not_found"),
        ):
            assert (await answer(gateway, where, body))[:2] == (status, error), (where, body)
        assert (await answer(gateway, path, method="GET"))[:2] == (405, "method_not_allowed")
        assert all(asked._acknowledged == 0 for asked in gateway.daemon.ack_tracker._states.values())
        assert await gateway.metric('acks_total{result="refused"}') == 11


async def test_an_answer_to_a_stream_that_has_ended() -> None:
    """The client could not know: no error may show in its page's console."""
    async with gateway_running(ACK) as gateway:
        stream = await gateway.subscribe("/events/orders")
        path, nonce = await question(stream)
        stream.close()
        await eventually(lambda: not gateway.daemon.streams.active)
        assert len(gateway.daemon.ack_tracker) == 0
        assert (await answer(gateway, path, nonce))[0] == 204
        assert await gateway.metric('acks_total{result="late"}') == 1


async def test_pages_may_answer_that_may_read_some_channel() -> None:
    """The node does not know which channels the stream has: it may be another's."""
    async with gateway_running(PAGES) as gateway:
        stream = await gateway.subscribe("/events/orders")
        path, nonce = await question(stream)
        for page in (APP, SHOP):
            status, _, headers = await answer(gateway, path, nonce, Origin=page)
            assert status == 204
            assert headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] == page
            assert headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] == "true"
            assert headers[hdrs.VARY] == "Origin"
        status, code, headers = await answer(gateway, path, nonce, Origin=EVIL)
        assert (status, code) == (403, "origin_refused")
        assert hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in headers
        status, code, headers = await answer(gateway, path, "x", Origin=APP)
        assert (status, headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN]) == (403, APP), "a page can read why"


@pytest.mark.parametrize(
    ("page", "method", "header", "status"),
    [
        (APP, "POST", "content-type", 200),
        (SHOP, "POST", "content-type", 200),
        (EVIL, "POST", "content-type", 403),
        (APP, "DELETE", "content-type", 403),
        (APP, "POST", "x-other", 403),
    ],
)
async def test_preflights(page: str, method: str, header: str, status: int) -> None:
    """A page that sends JSON needs a preflight."""
    async with gateway_running(PAGES) as gateway:
        headers = {
            hdrs.ORIGIN: page,
            hdrs.ACCESS_CONTROL_REQUEST_METHOD: method,
            hdrs.ACCESS_CONTROL_REQUEST_HEADERS: header,
        }
        got, _, answered = await answer(gateway, "/streams/" + "0" * 24 + "/ack", method="OPTIONS", **headers)
        assert got == status
        if status == 200:
            assert answered[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] == page
            assert method in answered[hdrs.ACCESS_CONTROL_ALLOW_METHODS]


async def test_options_without_a_page(gateway: Gateway) -> None:
    """What may be done here, for people and tools."""
    status, _, headers = await answer(gateway, "/streams/" + "0" * 24 + "/ack", method="OPTIONS")
    assert (status, headers["Allow"]) == (204, "POST, OPTIONS")


async def test_answers_of_one_address_are_bounded_and_cost_it_no_streams() -> None:
    """Garbage must not come as fast as it can; and a colleague behind the same address still gets in."""
    config = {**ACK, "limits": {"connect_rate_per_address": "3/h"}}
    async with gateway_running(config) as gateway:
        behind = {"X-Forwarded-For": "192.0.2.1"}
        stream = await gateway.subscribe("/events/orders", behind)
        path, nonce = await question(stream)
        got = [await answer(gateway, path, "x", **behind) for _ in range(4)]
        assert [status for status, _, _ in got] == [403, 403, 429, 429]
        assert got[-1][2]["Retry-After"] == "1"
        await gateway.subscribe("/events/orders", behind)
        assert (await answer(gateway, path, nonce, **{"X-Forwarded-For": "192.0.2.2"}))[0] == 204


@pytest.mark.parametrize(("proxies", "kept"), [(["127.0.0.0/8"], True), (["192.0.2.1"], False)])
async def test_only_a_proxys_connection_is_kept(proxies: list[str], kept: bool) -> None:
    """Kept alive for the next answer, the connections of clients would be as many as their streams."""
    async with gateway_running({**ACK, "server": {"trusted_proxies": proxies}}) as gateway:
        _, _, headers = await answer(gateway, "/streams/" + "0" * 24 + "/ack", "x")
        assert (headers.get("Connection") != "close") == kept
