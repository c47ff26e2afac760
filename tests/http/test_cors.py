"""CORS on real requests: preflights, answers, refusals."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.config.model.origins import MAX_ORIGIN_CHARS
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, gateway_running

CORS: dict[str, Any] = {
    "cors": {
        "origins": ["https://app.example.com", "https://*.wild.example"],
        "credentials": True,
        "max_age": "1h",
    },
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}},
    "channels": {
        "stock": {"cors": {"origins": ["https://stock.example"]}},
        "private": {"from": [{"source": "hooks", "topic": "p"}], "access": "token"},
    },
}
APP = "https://app.example.com"


def allowed(headers: Any) -> str | None:
    value = headers.get("access-control-allow-origin")
    return None if value is None else str(value)


@pytest.mark.parametrize(
    ("path", "origin", "status", "allow"),
    [
        ("/events/orders", APP, 200, APP),
        ("/events/orders", "https://a.wild.example", 200, "https://a.wild.example"),
        ("/events/orders", "https://evil.example", 403, None),
        ("/events/orders", "null", 403, None),
        ("/events/stock", APP, 403, None),
        ("/events/stock", "https://stock.example", 200, "https://stock.example"),
        ("/events?channel=orders,stock", APP, 403, None),
        ("/events?channel=orders,news", APP, 200, APP),
        ("/events/nope", APP, 404, APP),
        ("/events/nope", "https://evil.example", 403, None),
        ("/events/private", APP, 401, APP),
        ("/events?channel=orders&last=x", APP, 400, APP),
    ],
)
async def test_who_may_read(path: str, origin: str, status: int, allow: str | None) -> None:
    """Allowed pages can read errors too; others get no header and no stream; caches keep them apart."""
    async with gateway_running(CORS) as gateway:
        stream = await gateway.open(path, {"Origin": origin})
        assert stream.status == status
        assert allowed(stream.headers) == allow
        assert stream.headers["vary"] == "Origin"
        assert stream.headers.get("access-control-allow-credentials") == ("true" if allow else None)
        if status != 200:
            assert b'"error":' in await stream.rest()


async def test_without_origin_there_are_no_headers() -> None:
    """curl and same-origin pages are not CORS."""
    async with gateway_running(CORS) as gateway:
        stream = await gateway.open("/events/orders")
        assert stream.status == 200
        assert allowed(stream.headers) is None


async def test_a_refusal_names_the_rule_that_would_allow_it() -> None:
    """Operators find the setting to change in the response and in the log."""
    async with gateway_running(CORS) as gateway:
        stream = await gateway.open("/events/stock", {"Origin": APP})
        body = await stream.rest()
        assert b'channels.\\"stock\\".cors.origins' in body
        assert await gateway.metric('refused_total{reason="origin_refused"}') == 1


@pytest.mark.parametrize(
    ("origin", "method", "headers", "refused"),
    [
        (APP, "GET", "authorization, last-event-id", None),
        (APP, "GET", "", None),
        (APP, "GET", "x-strange", "cors_refused"),
        (APP, "DELETE", "", "cors_refused"),
        ("https://evil.example", "GET", "", "origin_refused"),
    ],
)
async def test_preflights_need_no_token(origin: str, method: str, headers: str, refused: str | None) -> None:
    """Answered before auth, by the library, with our policy."""
    async with gateway_running(CORS) as gateway:
        asked = {"Origin": origin, "Access-Control-Request-Method": method}
        if headers:
            asked["Access-Control-Request-Headers"] = headers
        async with gateway.session.options(f"{gateway.url}/events/private", headers=asked) as answer:
            assert answer.status == (403 if refused else 200)
            assert answer.headers["Vary"] == "Origin"
            if refused is None:
                assert allowed(answer.headers) == origin
                assert answer.headers["Access-Control-Max-Age"] == "3600"
                assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            else:
                assert allowed(answer.headers) is None
                assert (await answer.json())["error"] == refused


@pytest.mark.parametrize(
    ("origin", "method", "headers", "words"),
    [
        ("https://evil.example", "GET", "authorization", "allow it in cors.origins"),
        (APP, "GET", "x-strange", "x-strange; allow them in cors.allow_headers"),
        (APP, "DELETE", "", "may not use DELETE"),
    ],
)
async def test_a_refused_preflight_is_told_once(origin: str, method: str, headers: str, words: str) -> None:
    """The browser sends no request after it, so the log would never name the rule to change."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }
    async with gateway_running(CORS) as gateway:
        with capture_logs() as lines:
            for _ in range(3):
                async with gateway.session.options(f"{gateway.url}/events/private", headers=asked) as answer:
                    told = await answer.json()
        (line,) = [line for line in lines if line["event"] == "stream_refused"]
        assert words in line["reason"]
        assert (line["reason"], line["code"], line["origin"]) == (told["message"], told["error"], origin)
        assert await gateway.metric(f'refused_total{{reason="{told["error"]}"}}') == 3


async def test_nobody_may_read_by_default() -> None:
    """Secure by default: without origins in the file no page of another origin can."""
    async with gateway_running() as gateway:
        stream = await gateway.open("/events/orders", {"Origin": APP})
        assert stream.status == 403


async def test_a_star_echoes_the_origin_without_credentials() -> None:
    """'*' alone opens public data to every page."""
    async with gateway_running({"cors": {"origins": ["*"]}}) as gateway:
        stream = await gateway.open("/events/orders", {"Origin": "https://any.example"})
        assert allowed(stream.headers) == "https://any.example"
        assert "access-control-allow-credentials" not in stream.headers
        strange = await gateway.open("/events/orders", {"Origin": "https://\udcff.example"})
        assert strange.status == 403


@pytest.mark.parametrize("header", ["Origin", "Access-Control-Request-Headers"])
async def test_a_preflight_of_garbage_is_refused(header: str) -> None:
    """Headers that are not UTF-8 are a 403, not a 500."""
    async with gateway_running(CORS) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        headers = {"Origin": APP, "Access-Control-Request-Method": "GET", header: "\udcff\udcfe"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"OPTIONS /events/orders HTTP/1.1\r\nHost: x\r\n{lines}\r\n"
        writer.write(request.encode(errors="surrogateescape"))
        assert b" 403 " in await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()


async def test_refusals_do_not_fill_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """One line a minute for each page and address; it names the rule to change, and its number comes later."""
    evil = "https://evil.example"
    async with gateway_running({**CORS, "logging": {"level": "info"}}) as gateway:
        for _ in range(20):
            assert (await gateway.open("/events/orders", {"Origin": evil})).status == 403
            assert (await gateway.open("/events/nothing", {"X-Forwarded-For": "192.0.2.7"})).status == 404
            assert (await gateway.open("/events/private")).status == 401
        await gateway.open("/events/stock", {"Origin": APP})
    # The test's own log is structlog's default: readable lines.
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if "stream_refused" in line]
    assert len(lines) == 4, lines
    assert [line for line in lines if evil in line and "allow it in cors.origins" in line]
    assert [line for line in lines if APP in line and 'channels."stock".cors.origins' in line]
    assert [line for line in lines if "192.0.2.7" in line and "unknown_channel" in line]


async def test_two_origins_are_no_origin() -> None:
    """A header that was smuggled in beside the browser's own must not decide."""
    async with gateway_running(CORS) as gateway:
        for first, second in ((APP, "https://evil.example"), ("https://evil.example", APP), (APP, APP)):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            head = f"GET /events/orders HTTP/1.1\r\nHost: x\r\nOrigin: {first}\r\nOrigin: {second}\r\n\r\n"
            writer.write(head.encode())
            async with safety_net():
                answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert answer.split()[1] in ("400", "403"), answer
            assert "Access-Control-Allow-Origin" not in answer
            writer.transport.abort()


async def preflight(gateway: Gateway, address: str, path: str = "/events/orders", **headers: str) -> Any:
    """Send a preflight from behind a proxy, and return the answer."""
    sent = {"Origin": APP, "Access-Control-Request-Method": "GET", "X-Forwarded-For": address, **headers}
    async with gateway.session.options(gateway.url + path, headers=sent) as answer:
        await answer.read()
        return answer


@pytest.mark.parametrize(
    "path", ["/events/orders", "/events?channel=orders", "/tickets", f"/streams/{'0' * 24}/ack"]
)
async def test_a_flood_of_preflights_is_limited(path: str) -> None:
    """One address must not take the processor by questions that need no token; no other address notices."""
    async with gateway_running({**CORS, "limits": {"connect_rate_per_address": "3/h"}}) as gateway:
        method = "GET" if path.startswith("/events") else "POST"
        asked = {"Access-Control-Request-Method": method}
        answers = [await preflight(gateway, "192.0.2.1", path, **asked) for _ in range(5)]
        # The second on what came meanwhile, as with streams.
        assert [answer.status for answer in answers] == [200, 200, 429, 429, 429]
        assert answers[-1].headers["Retry-After"] == "1"
        assert answers[-1].headers["Connection"] == "close"
        assert (await preflight(gateway, "192.0.2.2", path, **asked)).status == 200
        assert await gateway.metric('refused_total{reason="rate_limited"}') == 3


async def test_plain_options_count_like_preflights() -> None:
    """An OPTIONS request that is no preflight costs as much."""
    async with gateway_running({**CORS, "limits": {"connect_rate_per_address": "3/h"}}) as gateway:
        behind = {"X-Forwarded-For": "192.0.2.1"}
        found = []
        for _ in range(3):
            async with gateway.session.options(f"{gateway.url}/events/orders", headers=behind) as answer:
                found.append(answer.status)
        assert found == [204, 204, 429]


async def test_a_page_that_needs_preflights_opens_as_many_streams_as_another() -> None:
    """They count apart: with a token in a header each stream may need one."""
    async with gateway_running({**CORS, "limits": {"connect_rate_per_address": "20/h"}}) as gateway:
        for _ in range(2):
            assert (await preflight(gateway, "192.0.2.1")).status == 200
            stream = await gateway.open("/events/orders", {"Origin": APP, "X-Forwarded-For": "192.0.2.1"})
            assert (await stream.next()).type == "stream.open"


async def test_no_origin_is_longer_than_origins_are() -> None:
    """A stream keeps its page's origin, and caches keep it; with a star it may say what it likes."""
    async with gateway_running({"cors": {"origins": ["*"]}}) as gateway:
        longest = "https://" + "a" * (MAX_ORIGIN_CHARS - 8)
        assert (await gateway.open("/events/orders", {"Origin": longest})).status == 200
        assert (await gateway.open("/events/orders", {"Origin": longest + "a"})).status == 403
