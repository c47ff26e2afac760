"""The try-it panel's routes: in development mode only, with the checks that every event passes."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.loader.issues import ConfigError
from tests.admin.test_guard import TOKEN, ask
from tests.integration.test_workers import config, group
from tests.support.config import loads
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, gateway_running, merged

OPEN: dict[str, Any] = {
    "server": {"development": True},
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}},
    "limits": {"event_bytes": "1KiB"},
    "channels": {
        "secret": {"from": [{"source": "hooks", "topic": "secret"}], "access": "token"},
        "words": {"from": [{"source": "hooks", "topic": "words"}], "access": "public", "payload": "text"},
        "whole": {"from": [{"source": "hooks", "topic": "whole"}], "access": "public", "payload": "envelope"},
        "user.{id}": {"from": [{"source": "hooks", "topic": "user:{id}"}], "access": {"claims": {"sub": "{id}"}}},
    },
}  # fmt: skip


async def send(
    gateway: Gateway, body: Any, content_type: str = "application/json", **headers: str
) -> tuple[int, Any]:
    """Send an event by hand."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/try/events"
    sent = {"Content-Type": content_type, **headers}
    async with gateway.session.post(url, data=data, headers=sent) as answer:
        return answer.status, await answer.json()


async def listen(gateway: Gateway, channel: str) -> Stream:
    """Listen as the panel does."""
    headers = {"Host": "localhost"}
    stream = await Stream.open(gateway.daemon.admin_listener.port, f"/try/events?channel={channel}", headers)
    gateway.streams.append(stream)
    assert stream.status == 200
    assert (await stream.next()).type == "stream.open"
    return stream


async def test_the_panel_is_not_asked_for_answers() -> None:
    """It listens on the admin port, and answers are taken on the public one."""
    async with gateway_running({**OPEN, "ack": {}}) as gateway:
        stream = await listen(gateway, "secret")
        assert "ack" not in stream.messages[0].json
        assert len(gateway.daemon.ack_tracker) == 0


async def test_without_development_mode_there_is_nothing(gateway: Gateway) -> None:
    """Metrics' readers must not become senders."""
    assert (await ask(gateway, "/try/events?channel=orders"))[0] == 404
    assert (await send(gateway, {"channel": "orders", "payload": 1}))[0] == 404


@pytest.mark.parametrize(
    ("channel", "payload", "wanted"),
    [
        ("secret", {"n": 1}, {"n": 1}),
        ("user.7", [1, None], [1, None]),
        ("words", "so many words", "so many words"),
        ("words", {"n": 1}, '{"n": 1}'),
        ("whole", {"n": 2}, {"n": 2}),
    ],
)
async def test_what_is_sent_arrives_here_and_at_clients(channel: str, payload: Any, wanted: Any) -> None:
    """The panel's events are events like any other, whatever a channel's payload and access."""
    async with gateway_running(OPEN) as gateway:
        stream = await listen(gateway, channel)
        status, told = await send(gateway, {"channel": channel, "payload": payload, "type": "order.created"})
        assert status == 200
        message = await stream.next()
        assert (message.type, message.id, message.json["payload"]) == ("order.created", told["id"], wanted)
        assert await gateway.metric("active_connections") == 1
        if channel in ("words", "whole"):
            client = await gateway.open(f"/events/{channel}?last=1")
            assert (await client.until("order.created")).id == told["id"]


async def test_large_numbers_go_through_as_they_were_typed() -> None:
    """An id that a browser's JSON would round must not be another one."""
    async with gateway_running(OPEN) as gateway:
        stream = await listen(gateway, "orders")
        await send(gateway, b'{"channel": "orders", "payload": 12345678901234567890.10}')
        assert '"payload":12345678901234567890.10}' in str((await stream.next()).data)


REFUSED: list[tuple[Any, int, str]] = [
    ({"channel": "nothing", "payload": 1}, 404, "unknown_channel"),
    ({"channel": "user.{id}", "payload": 1}, 404, "unknown_channel"),
    ({"channel": "orders", "payload": "x" * 2000}, 413, "too_large"),
    ({"channel": "orders", "payload": 1, "type": "a\nb"}, 422, "bad_type"),
    ({"channel": "orders"}, 400, "bad_event"),
    ({"channel": "orders", "payload": 1, "more": 1}, 400, "bad_event"),
    ({"channel": 1, "payload": 1}, 400, "bad_event"),
    (b"[" * 100_000, 400, "bad_event"),
    (b'{"channel": "orders", "payload": "\xff"}', 422, "not_utf8"),
    (b"", 400, "bad_event"),
    (b" " * 3_000_000, 413, "too_large"),
]


async def test_what_cannot_be_an_event_is_refused() -> None:
    """The words are those of a webhook's refusal; nothing is appended."""
    async with gateway_running(OPEN) as gateway:
        for body, status, code in REFUSED:
            found, told = await send(gateway, body)
            assert (found, told["error"]) == (status, code), (str(body)[:80], told)
        assert await gateway.metric('events_published_total{channel="orders"}') == 0


async def test_no_form_of_another_page_can_send() -> None:
    """CSRF: the type needs a preflight, which the guard refuses, as it does the post."""
    event = {"channel": "orders", "payload": 1}
    async with gateway_running(OPEN) as gateway:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            status, told = await send(gateway, event, content_type)
            assert (status, told["error"]) == (415, "bad_content_type")
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await send(gateway, event, **headers))[0] == 403
        assert await gateway.metric('events_published_total{channel="orders"}') == 0


async def test_with_a_token_only_who_has_it() -> None:
    """Development mode lets nobody else in."""
    async with gateway_running(merged(OPEN, {"server": {"admin_token": TOKEN}})) as gateway:
        event = {"channel": "orders", "payload": 1}
        assert (await send(gateway, event))[0] == 401
        assert (await ask(gateway, "/try/events?channel=orders"))[0] == 401
        assert (await send(gateway, event, Authorization=f"Bearer {TOKEN}"))[0] == 200


def test_an_open_port_and_development_do_not_go_together() -> None:
    """Anyone who reaches the port could read channels that need a token."""
    server = {"admin": "0.0.0.0:9090", "admin_open": True, "development": True}
    with pytest.raises(ConfigError, match=r"server\.development: would let whoever reaches"):
        loads(json.dumps(merged(BASE, {"server": server})), environ={})
    for good in ({"admin_open": None, "admin_token": TOKEN}, {"development": False}):
        loads(json.dumps(merged(BASE, {"server": server | good})), environ={})


async def test_a_parent_hands_it_to_a_worker(tmp_path: Path) -> None:
    """A stream of one worker shows what another one was sent; a worker's refusal comes through as it is."""
    whole = config(tmp_path)
    whole["server"]["development"] = True
    async with group(tmp_path, whole) as gateway, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{gateway.admin}/try/events"
        stream = await Stream.open(gateway.admin, "/try/events?channel=orders", {"Host": "localhost"})
        assert (await stream.next()).type == "stream.open"
        async with session.post(url, json={"channel": "orders", "payload": {"n": 1}}) as answer:
            assert answer.status == 200, await answer.text()
            sent = (await answer.json())["id"]
        message = await stream.next()
        assert (message.id, message.json["payload"]) == (sent, {"n": 1})
        async with session.post(url, json={"channel": "nothing", "payload": 1}) as answer:
            assert (answer.status, (await answer.json())["error"]) == (404, "unknown_channel")
        async with session.get(f"{url}?channel=nothing") as answer:
            assert (answer.status, (await answer.json())["error"]) == (404, "unknown_channel")
        async with session.post(url, data="x", headers={"Content-Type": "text/plain"}) as answer:
            assert answer.status == 415
        _, status = await gateway.get("/status")
        assert status["development"] is True
        assert status["channels"][0]["listeners"] == 1
        stream.close()
        await gateway.stop()
