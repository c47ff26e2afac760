"""A plain EventSource in a real Chromium, on a page of another origin."""

import re
from pathlib import Path

import pytest

from tests.support.authority import Authority
from tests.support.browser import CLOSED, has, is_in_state, listen, page_of_another_origin
from tests.support.gateway import Gateway, eventually, gateway_running

pytestmark = pytest.mark.extended

HTTP = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


async def test_a_page_of_another_origin_gets_events_and_loses_none_over_a_drop() -> None:
    """Open, live events of two types, a dropped connection, events meanwhile, resume: all once, in order."""
    async with page_of_another_origin() as (page, origin):
        over = {
            "cors": {"origins": [origin]},
            "timeouts": {"retry": "500ms"},
            "channels": {"orders": {"payload": "envelope"}},
        }
        async with gateway_running(over) as gateway:
            await listen(page, f"{gateway.url}/events?channel=orders,stock")
            await eventually(lambda: gateway.daemon.streams.active)
            await gateway.post("stock", "0")
            await gateway.post("orders", '{"type":"order.created","payload":1}')
            await eventually(lambda: has(page, [0, 1]))
            for stream in list(gateway.daemon.streams.active):
                stream.abort("test")
            await gateway.post("stock", "2")
            await eventually(lambda: has(page, [0, 1, 2]))
            await gateway.post("orders", '{"type":"order.created","payload":3}')
            await eventually(lambda: has(page, [0, 1, 2, 3]))


async def test_overload_does_not_end_an_eventsource_for_good() -> None:
    """200 + stream.close: the browser keeps coming back, and is in as soon as there is room."""
    async with page_of_another_origin() as (page, origin):
        over = {"cors": {"origins": [origin]}, "timeouts": {"retry": "300ms"}, "limits": {"connections": 1}}
        async with gateway_running(over) as gateway:
            held = await gateway.subscribe("/events/orders")
            await listen(page, f"{gateway.url}/events/orders")
            await eventually(lambda: is_refused_twice(gateway))
            held.close()
            await eventually(lambda: has_browser(gateway))
            await gateway.post("orders", '"in"')
            await eventually(lambda: has(page, ["in"]))


async def is_refused_twice(gateway: Gateway) -> bool:
    return await gateway.metric('refused_total{reason="overloaded"}') >= 2


async def has_browser(gateway: Gateway) -> bool:
    return await gateway.metric("connections_total") == 2


async def test_a_page_that_may_not_read_is_refused_and_told_so_by_its_console() -> None:
    """No origin is allowed by default; the browser says CORS, and the gateway names the rule."""
    async with page_of_another_origin() as (page, _), gateway_running() as gateway:
        console: list[str] = []
        page.on("console", lambda message: console.append(message.text))
        await listen(page, f"{gateway.url}/events/orders")
        await eventually(lambda: is_in_state(page, CLOSED))
        await eventually(lambda: any("CORS" in line for line in console))
        assert await gateway.metric('refused_total{reason="origin_refused"}') == 1


async def test_a_browser_is_not_disturbed_where_senders_have_certificates(tmp_path: Path) -> None:
    """The port asks everybody for a certificate; a browser that has none streams as ever, over a rotation too."""
    authority = Authority(tmp_path)
    first, second = authority.server(), authority.server(kind="rsa")
    tls = {"certificate": str(first.certificate), "key": str(first.key), "client_ca": str(authority.file)}
    async with page_of_another_origin("--ignore-certificate-errors") as (page, origin):
        over = {"server": {"tls": tls}, "cors": {"origins": [origin]}, "timeouts": {"retry": "300ms"}}
        async with gateway_running(over) as gateway:
            url = f"https://127.0.0.1:{gateway.port}"

            async def post(body: str) -> None:
                hook = f"{url}/hooks/hooks?topic=orders"
                async with gateway.session.post(hook, data=body, ssl=authority.client()) as answer:
                    assert answer.status == 200

            await listen(page, f"{url}/events/orders")
            await eventually(lambda: gateway.daemon.streams.active)
            await post("1")
            await eventually(lambda: has(page, [1]))
            for old, new in zip(first, second, strict=True):
                new.rename(old)
            await eventually(lambda: _reloaded(gateway))
            await post("2")
            for stream in list(gateway.daemon.streams.active):
                stream.abort("test")
            await post("3")
            await eventually(lambda: has(page, [1, 2, 3]))


async def _reloaded(gateway: Gateway) -> bool:
    return await gateway.metric('tls_reloads_total{result="ok"}') == 1


async def test_pages_answer_heartbeats() -> None:
    """The lines of docs/http.md, and our client, live on; a stream that says nothing is closed; no noise."""
    lines = next(
        block for block in re.findall(r"```js\n(.*?)```", HTTP, re.DOTALL) if "stream.heartbeat" in block
    )
    ours = """async (url) => {
        const { connect } = await import("/client.js");
        window.stream = connect(url, { channels: ["stock"] });
    }"""
    async with page_of_another_origin() as (page, origin):
        noise: list[str] = []
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        ack = {"interval": "1s", "timeout": "3m", "retry_limit": 1}
        strict = {"interval": "1s", "timeout": "1s", "retry_limit": 1}
        async with (
            gateway_running({"cors": {"origins": [origin]}, "ack": ack}) as gateway,
            gateway_running({"ack": strict}) as other,
        ):
            await page.evaluate(f"{{{lines.replace('https://events.example.com', gateway.url)}}}")
            await page.evaluate(ours, gateway.url)
            await eventually(lambda: len(gateway.daemon.streams.active) == 2)
            silent = await other.subscribe("/events/news")
            assert (await silent.until("stream.close")).json["reason"] == "unacknowledged"
            await eventually(lambda: _answered(gateway, 10))
            assert await gateway.metric("connections_total") == 2, "neither was closed, and came back"
            assert noise == []


async def _answered(gateway: Gateway, times: int) -> bool:
    return await gateway.metric('acks_total{result="local"}') >= times
