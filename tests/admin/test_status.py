"""The shape of ``/status``, which scripts and the console read."""

import json
from pathlib import Path

import msgspec

from gateway.admin.status_report import StatusReport
from tests.admin.test_guard import ask
from tests.integration.test_workers import config, group
from tests.support.eventsource import Stream
from tests.support.gateway import eventually, gateway_running


async def test_the_report_has_the_documented_keys(tmp_path: Path) -> None:
    """Scripts are written from the table, which is generated from the types."""
    own = config(tmp_path)
    own["sources"]["app"] = {"type": "redis-pubsub", "url": "redis://127.0.0.1:1"}
    own["channels"]["stock"] = {"from": [{"source": "app", "topic": "stock"}], "access": "public"}
    async with group(tmp_path, own) as gateway:
        stream = await Stream.open(gateway.port, "/events/orders", {"Origin": "https://evil.example"})
        stream.close()
        _, status = await gateway.get("/status")
    assert status["recent_errors"]
    report = msgspec.convert(status, StatusReport)
    assert msgspec.to_builtins(report) == status
    assert len(status["workers"]) == 2


async def test_recent_errors_have_their_reason_and_no_secrets() -> None:
    """Of streams, of posts and on the admin port: who, why, how often; what was shown as a token is not."""
    over = {
        "server": {"admin_token": "t0ken-" * 4},
        "auth": {"jwt": {"algorithms": ["HS256"], "secret": "s" * 32}},
        "channels": {"mine": {"from": [{"source": "hooks", "topic": "mine"}], "access": "token"}},
    }
    async with gateway_running(over) as gateway:
        for _ in range(3):
            await gateway.open("/events/orders", {"Origin": "https://evil.example"})
        await gateway.open("/events/mine", {"Authorization": "Bearer canary-of-a-client"})
        async with gateway.session.post(
            f"{gateway.url}/hooks/hooks?topic=orders", data=b"\xff canary"
        ) as post:
            assert post.status == 422
        await ask(gateway, "/status", Authorization="Bearer canary-of-an-operator")
        _, _, status = await ask(gateway, "/status", Authorization=f"Bearer {'t0ken-' * 4}")
        shown = {refusal["code"]: refusal for refusal in status["recent_errors"]}
        assert {"origin_refused", "invalid_token", "not_utf8"} <= set(shown)
        assert shown["origin_refused"]["count"] == 3
        assert shown["origin_refused"]["origin"] == "https://evil.example"
        assert "cors.origins" in shown["origin_refused"]["reason"]
        assert (shown["not_utf8"]["kind"], shown["not_utf8"]["source"]) == ("source", "hooks")
        assert {refusal["kind"] for refusal in status["recent_errors"]} == {"stream", "source", "admin"}
        assert "canary" not in json.dumps(status)


async def test_counts_by_channel_are_those_of_the_metrics() -> None:
    """The console's rates are their growth."""
    async with gateway_running() as gateway:
        streams = [await gateway.subscribe("/events/orders") for _ in range(2)]
        for number in range(3):
            await gateway.post("orders", str(number))
        for stream in streams:
            for _ in range(3):
                await stream.next()
        await eventually(lambda: gateway.daemon.metrics.bytes_sent.value)
        _, status = await gateway.admin("/status")
        (orders,) = (channel for channel in status["channels"] if channel["name"] == "orders")
        assert (orders["published"], orders["delivered"]) == (3, 6)
        totals = status["totals"]
        assert (totals["published"], totals["delivered"], totals["received"], totals["opened"]) == (
            3,
            6,
            3,
            2,
        )
        assert totals["lag_count"] > 0
        assert totals["bytes_sent"] == await gateway.metric("bytes_sent_total")
