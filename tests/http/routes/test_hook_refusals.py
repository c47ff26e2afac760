"""No refusal of a webhook without a trace: counted by source and reason, logged, shown, wherever it arises."""

import asyncio
import json
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, gateway_running

TOKEN = "s3cret-s3cret-s3cret"
CONFIG: dict[str, Any] = {
    "logging": {"level": "warning", "format": "json"},
    "limits": {"webhook_body": "1KiB", "event_bytes": "512B"},
    "sources": {
        "signed": {"type": "webhook", "verify": {"bearer": [TOKEN]}},
        "slow": {"type": "webhook", "verify": {"none": True}, "rate": "1/h"},
    },
    "channels": {
        "orders": {
            "access": "public",
            "from": [{"source": source, "topic": "orders"} for source in ("hooks", "signed", "slow")],
        }
    },
}


class Case(NamedTuple):
    """A refused request, and its counter."""

    name: str
    request: str
    status: int
    reason: str
    source: str = "hooks"
    metric: str = "events_rejected_total"


def posted(path: str, body: str = "1", head: str = "") -> str:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{head}\r\n{body}"


def asked(method: str, path: str, head: str = "") -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{head}\r\n"


CASES = [
    Case("a misspelt source", posted("/hooks/hoks?topic=orders"), 404, "unknown_source", ""),
    Case("its health check", asked("HEAD", "/hooks/hoks"), 404, "unknown_source", ""),
    Case("its handshake", asked("OPTIONS", "/hooks/hoks"), 404, "unknown_source", ""),
    Case("its REST Proxy", posted("/hooks/hoks/topics/orders"), 404, "unknown_source", ""),
    Case("it, before its body", posted("/hooks/hoks", "1", "Expect: 100-continue\r\n"), 404, "unknown_source", ""),
    Case("no source", posted("/hooks"), 404, "not_found", ""),
    Case("no source, with a slash", posted("/hooks/"), 404, "not_found", ""),
    Case("a path that no format has", posted("/hooks/hooks/a/b/c/d"), 404, "not_found"),
    Case("PUT", asked("PUT", "/hooks/hooks?topic=orders", "Content-Length: 0\r\n"), 405, "method_not_allowed"),
    Case("GET, as Camel sends it", asked("GET", "/hooks/hooks?topic=orders"), 405, "method_not_allowed"),
    Case("GET of a REST Proxy", asked("GET", "/hooks/hooks/topics/orders"), 405, "method_not_allowed"),
    Case("GET of nobody", asked("GET", "/hooks/hoks"), 405, "method_not_allowed", ""),
    Case("another method", asked("PROPFIND", "/hooks/hooks?topic=orders"), 405, "method_not_allowed"),
    Case("no topic", posted("/hooks/hooks"), 400, "no_topic"),
    Case("no channel", posted("/hooks/hooks?topic=nowhere"), 404, "no_route"),
    Case("no JSON", posted("/hooks/hooks?topic=orders", "{"), 422, "not_json"),
    Case("no token", posted("/hooks/signed?topic=orders"), 401, "missing_token", "signed"),
    Case("too large", posted("/hooks/hooks?topic=orders", "1" * 2000), 413, "too_large"),
    Case("another expectation", posted("/hooks/hooks", "1", "Expect: magic\r\n"), 417, "expectation_failed"),
    Case("an encoding", posted("/hooks/hooks", "1", "Content-Encoding: br\r\n"), 415, "unknown_encoding"),
    Case("a rate", posted("/hooks/slow?topic=orders"), 429, "", "slow", "webhook_throttled_total"),
    Case("a header that is too long", posted("/hooks/hooks", "1", f"X: {'x' * 9000}\r\n"), 431, "bad_http"),
    Case("a URL that is too long", posted(f"/hooks/hooks?topic={'x' * 9000}"), 414, "bad_http"),
    Case("no HTTP", "POST /hooks/hooks HTTP/1.1\r\nHost : a\r\n\r\n", 400, "bad_http"),
    Case("another version", "POST /hooks/hooks HTTP/3.0\r\nHost: a\r\n\r\n", 505, "http_version", metric="webhook_unavailable_total"),
]  # fmt: skip


async def answer_to(gateway: Gateway, request: str) -> tuple[int, bytes]:
    """Send a request, and return the status and all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.daemon.public_listener.port)
    try:
        writer.write(request.encode())
        async with safety_net():
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            body = b"" if request.startswith("HEAD") else await reader.readexactly(length)
    finally:
        writer.transport.abort()
    return int(head.split()[1]), body


def series(case: Case) -> str:
    labels = f'source="{case.source}"'
    if case.metric != "webhook_throttled_total":
        labels = f'reason="{case.reason}",{labels}'
    return f"{case.metric}{{{labels}}}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_refusal_is_counted_and_logged(case: Case) -> None:
    """A sender drops its event at a 4xx: without a count and a log line the loss would go unnoticed."""
    async with gateway_running(CONFIG) as gateway:
        with capture_logs() as logs:
            for _ in range(3 if case.status == 429 else 0):
                await answer_to(gateway, posted("/hooks/slow?topic=orders", "[1,2,3]"))
            before = await gateway.metric(series(case))
            for _ in range(3):
                status, _ = await answer_to(gateway, case.request)
                assert status == case.status
        assert await gateway.metric(series(case)) == before + 3
        lines = [line for line in logs if line["event"] in ("rejected", "webhook_refused")]
        assert len(lines) == 1, "once a minute for each cause"
        assert lines[0]["source"] == (case.source or None)
        assert lines[0]["reason"] == (case.reason or "rate_limited")
        shown = (await gateway.admin("/status"))[1]["refusals"]
        assert [refusal["times"] for refusal in shown] == [before + 3]


async def test_a_misspelt_source_is_told_from_its_neighbour() -> None:
    """The operator reads which source was meant; the name itself may be anything, a token too."""
    async with gateway_running(CONFIG) as gateway:
        with capture_logs() as logs:
            await answer_to(gateway, posted("/hooks/signd?topic=orders"))
            await answer_to(gateway, posted("/hooks/whsec_bm90IGZvciB0aGUgbG9n?topic=orders"))
    assert [line["nearest_source"] for line in logs] == ["signed"]
    assert "whsec" not in str(logs)
    assert "signd" not in str(logs)


async def test_a_method_is_named_with_its_remedy(gateway: Gateway) -> None:
    """Camel and others send GET by default, and take any response for success."""
    status, body = await answer_to(gateway, asked("GET", "/hooks/hooks?topic=orders"))
    assert status == 405
    told = json.loads(body)
    assert told["error"] == "method_not_allowed"
    assert "GET" in told["message"]
    assert "POST" in told["message"]
    _, body = await answer_to(gateway, asked("PROPFIND", "/hooks/hooks?topic=orders"))
    assert b"PROPFIND" not in body


async def test_a_log_that_is_away_is_counted(gateway: Gateway) -> None:
    """503s have a counter of their own: senders try again, so they are no loss, but they are no success either."""
    gateway.daemon.source_manager.pause_webhooks()
    status, _ = await answer_to(gateway, posted("/hooks/hooks?topic=orders"))
    assert status == 503
    assert await gateway.metric('webhook_unavailable_total{reason="unavailable",source="hooks"}') == 1


async def test_refusals_below_a_base_path_are_counted() -> None:
    """Behind a proxy that cannot strip a path, webhooks are below it too."""
    async with gateway_running({"server": {"base_path": "/sse"}}) as gateway:
        for request, status in (
            (posted("/sse/hooks/hoks"), 404),
            (asked("GET", "/sse/hooks/hooks"), 405),
            ("POST /sse/hooks/hooks HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            (posted("/hooks/hooks"), 404),
        ):
            assert (await answer_to(gateway, request))[0] == status
        shown = (await gateway.admin("/status"))[1]["refusals"]
        assert {refusal["code"] for refusal in shown} == {"unknown_source", "method_not_allowed", "bad_http"}
