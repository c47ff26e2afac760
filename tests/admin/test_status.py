"""The shape of ``/status``, which scripts and the console read."""

import json
import re
from pathlib import Path
from typing import Any

from tests.admin.test_guard import ask
from tests.integration.test_workers import config, group
from tests.support.eventsource import Stream
from tests.support.gateway import eventually, gateway_running

OPERATIONS = (Path(__file__).parents[2] / "docs/operations.md").read_text()


def names(value: Any) -> set[str]:
    """Return all keys, but for those of rejections, which are reasons."""
    if isinstance(value, list):
        return {name for each in value for name in names(each)}
    if not isinstance(value, dict):
        return set()
    return {*value, *(name for key, each in value.items() if key != "rejected" for name in names(each))}


async def test_every_key_is_documented_and_every_documented_one_is_there(tmp_path: Path) -> None:
    """Scripts are written from the table."""
    (table,) = re.findall(r"## Status\n.*?(\| key.*?)\n\n", OPERATIONS, re.DOTALL)
    own = config(tmp_path)
    own["sources"]["app"] = {"type": "redis-pubsub", "url": "redis://127.0.0.1:1"}
    own["channels"]["stock"] = {"from": [{"source": "app", "topic": "stock"}], "access": "public"}
    async with group(tmp_path, own) as gateway:
        stream = await Stream.open(gateway.port, "/events/orders", {"Origin": "https://evil.example"})
        stream.close()
        _, status = await gateway.get("/status")
    assert status["refusals"]
    assert names(status) - set(re.findall(r"`(\w+)(?:\[\])?`", table)) == set()
    firsts = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)", "".join(firsts))) == set(status)


async def test_refusals_are_told_with_their_reason_and_without_secrets() -> None:
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
        told = {refusal["code"]: refusal for refusal in status["refusals"]}
        assert {"origin_refused", "invalid_token", "not_utf8"} <= set(told)
        assert told["origin_refused"]["times"] == 3
        assert told["origin_refused"]["origin"] == "https://evil.example"
        assert "cors.origins" in told["origin_refused"]["reason"]
        assert (told["not_utf8"]["kind"], told["not_utf8"]["source"]) == ("source", "hooks")
        assert {refusal["kind"] for refusal in status["refusals"]} == {"stream", "source", "admin"}
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
