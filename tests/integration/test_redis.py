"""The redis-pubsub source against a real server that is late, killed, frozen and restarted."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.core.event import EventId
from gateway.sources.redis import pubsub as redis_pubsub
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer, redis_server

PATIENT = "60s"
"""A timeout for servers that answer, long enough for a slow machine."""


def config(redis: RedisServer, **source: Any) -> dict[str, Any]:
    return {
        "sources": {"app": {"type": "redis-pubsub", "url": redis.url, "timeout": PATIENT, **source}},
        "channels": {
            "orders": {
                "from": [{"source": "app", "topic": "orders.*"}, {"source": "app", "topic": "orders.created"}]
            },
            "stock": {"from": [{"source": "app", "topic": "stock"}], "payload": "text"},
            "user.{id}": {"from": [{"source": "app", "topic": "user:{id}"}], "access": "public"},
        },
    }


async def is_up(gateway: Gateway) -> bool:
    return await gateway.metric('source_up{source="app"}') == 1


async def test_a_published_message_reaches_the_channel_as_the_envelope(redis: RedisServer) -> None:
    """The main job would fail: `PUBLISH orders.created` arrives on `GET /events/orders`."""
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders")
        redis.publish("orders.created", '{"a":1}')
        message = await stream.next()
        assert message.type == "message"
        envelope = message.json
        assert envelope["channel"] == "orders"
        assert envelope["payload"] == {"a": 1}
        assert envelope["id"] == message.id
        assert b'"payload":{"a":1}}\nid: ' in stream.body


async def test_a_message_that_two_subscriptions_match_arrives_once(redis: RedisServer) -> None:
    """A message would be several events, because Redis sends one copy per matching subscription."""
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders")
        assert redis.publish("orders.created", "1") == 2
        redis.publish("orders.paid", "2")
        assert [(await stream.next()).json["payload"] for _ in range(2)] == [1, 2]


async def test_templates_capture_and_odd_topics_are_counted(redis: RedisServer) -> None:
    """A user would get another one's messages, or a message without a channel would vanish uncounted."""
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/user.42")
        redis.publish("user:43", '"other"')
        redis.publish("user:\u200b", '"no name"')
        redis.publish(b"user:\xff", '"no utf-8"')
        redis.publish("user:42", '"mine"')
        assert (await stream.next()).json["payload"] == "mine"
        assert await gateway.metric('events_rejected_total{reason="no_route",source="app"}') == 2


async def test_records_that_cannot_become_events_are_counted_by_reason(redis: RedisServer) -> None:
    """A malformed record would stop the valid ones, or go uncounted."""
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders")
        redis.publish("orders.x", "{not json")
        redis.publish("orders.x", b"\xff")
        redis.publish("orders.x", "[" * 100_000)
        redis.publish("orders.x", '"' + "x" * 300_000 + '"')
        redis.publish("orders.x", "true")
        assert (await stream.next()).json["payload"] is True
        for reason, count in (("not_json", 2), ("not_utf8", 1), ("too_large", 1)):
            assert await gateway.metric(f'events_rejected_total{{reason="{reason}",source="app"}}') == count


async def test_a_burst_arrives_whole_and_in_order(redis: RedisServer) -> None:
    """A burst would be reordered or cut, or would end a client as too slow."""
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders")
        with redis.client() as client:
            pipeline = client.pipeline(transaction=False)
            for number in range(3000):
                pipeline.publish("orders.x", number)
            pipeline.execute()
        assert [(await stream.next()).json["payload"] for _ in range(3000)] == list(range(3000))


async def test_a_server_that_is_not_there_yet_stops_nothing(redis: RedisServer) -> None:
    """The gateway would not start without Redis, or not connect once it is there."""
    redis.kill()
    async with gateway_running(config(redis)) as gateway:
        await eventually(lambda: gateway.daemon.source_manager.supervisors["app"].state.status == "down")
        stream = await gateway.subscribe("/events/orders")
        status, ready = await gateway.admin("/readyz")
        assert status == 200
        assert ready["sources"]["app"].startswith("down: Redis: ")
        assert not await is_up(gateway)
        redis.start()
        gap = await stream.until("stream.gap")
        assert gap.json["channel"] == "orders"
        redis.publish("orders.x", "1")
        assert (await stream.next()).json["payload"] == 1


async def test_a_critical_source_that_is_down_makes_the_node_unready(redis: RedisServer) -> None:
    """A load balancer would send clients to a node whose critical source is down."""
    redis.kill()
    async with gateway_running(config(redis, critical=True)) as gateway:
        status, ready = await gateway.admin("/readyz")
        assert status == 503
        assert ready["not_ready"] == ["source app"]


async def kill_connection(gateway: Gateway, redis: RedisServer) -> None:
    with contextlib.closing(redis.client()) as client:
        client.client_kill_filter(_type="pubsub")


async def restart(gateway: Gateway, redis: RedisServer) -> None:
    redis.kill()
    await eventually(lambda: is_down(gateway))
    redis.start()


async def freeze(gateway: Gateway, redis: RedisServer) -> None:
    redis.freeze()
    try:
        await eventually(lambda: is_down(gateway))
        gateway.daemon.source_manager.supervisors["app"]._source._timeout = 60.0  # type: ignore[attr-defined]
    finally:
        redis.thaw()


async def is_down(gateway: Gateway) -> bool:
    return not await is_up(gateway)


@pytest.mark.parametrize(
    ("trouble", "timeout"), [(kill_connection, PATIENT), (restart, PATIENT), (freeze, "1s")]
)
async def test_a_lost_interval_is_a_gap_on_the_channels_concerned(
    redis: RedisServer, trouble: Any, timeout: str
) -> None:
    """Messages lost in an outage would be missing without a gap, in live streams or in a replay."""
    async with gateway_running(config(redis, timeout=timeout)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events?channel=orders,user.42,news")
        redis.publish("orders.x", "1")
        before = await stream.next()
        await trouble(gateway, redis)
        gaps = [await stream.until("stream.gap") for _ in range(2)]
        assert {gap.json["channel"] for gap in gaps} == {"orders", "user.42"}
        assert {gap.json["reason"] for gap in gaps} == {"source_interrupted"}
        for gap in gaps:
            after, oldest = EventId.parse(gap.json["after"]), EventId.parse(gap.json["oldest"])
            assert after is not None and oldest is not None and after < oldest
        await eventually(lambda: is_up(gateway))
        redis.publish("user:42", "2")
        assert (await stream.next()).json["payload"] == 2
        assert await gateway.metric("disconnects_total") == 0
        # Somebody who was away meanwhile learns it from the log.
        late = await gateway.subscribe("/events/user.42", {"Last-Event-ID": before.id})
        assert (await late.next()).type == "stream.gap"
        assert (await late.next()).json["payload"] == 2


async def test_a_pause_of_the_gateway_itself_loses_nothing(redis: RedisServer) -> None:
    """A suspended process would lose the messages in its socket, or report a gap that is none."""
    async with gateway_running(config(redis, timeout="2s")) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/stock")
        for number in range(5):
            redis.publish("stock", str(number))
            time.sleep(0.5)  # of the whole loop, and together longer than the timeout
        assert [(await stream.next()).json["payload"] for _ in range(5)] == [str(n) for n in range(5)]


async def test_a_user_that_may_only_subscribe(redis: RedisServer) -> None:
    """A Redis user without permission to PUBLISH could not be used as an upstream."""
    rights = ("resetchannels", "&orders.*", "&stock", "&user:*", "+subscribe", "+psubscribe", "+ping")
    with contextlib.closing(redis.client()) as client:
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pass", *rights)  # type: ignore[no-untyped-call]
    url = redis.url.replace("redis://", "redis://reader:pass@")
    async with gateway_running(config(redis, url=url)) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders")
        redis.publish("orders.created", "1")
        assert (await stream.next()).json["payload"] == 1


async def test_the_log_needs_no_more_rights_than_the_docs_say(redis: RedisServer) -> None:
    """A broker with the permissions of docs/operations.md would refuse some of the gateway's commands."""
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    keys, channels = re.findall(r"needs `(~\S+) (&\S+)`", text)[0]
    commands = re.findall(r"commands\n`([^`]+)`", text)[0].split()
    with contextlib.closing(redis.client()) as client:
        client.execute_command(
            "ACL", "SETUSER", "log", "on", ">pass", keys, "resetchannels", channels, *commands
        )  # type: ignore[no-untyped-call]
    over = {"broker": {"url": redis.url.replace("redis://", "redis://log:pass@")}}
    async with gateway_running({**config(redis), **over}) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/orders?last=5")
        redis.publish("orders.created", "1")
        assert (await stream.next()).json["payload"] == 1
        again = await gateway.subscribe("/events/orders?last=1")
        assert (await again.next()).json["payload"] == 1


async def test_no_password_in_any_answer(redis: RedisServer) -> None:
    """The password in a source's URL would show in status, metrics or readiness."""
    url = redis.url.replace("redis://", "redis://user:canary-password@")
    async with gateway_running(config(redis, url=url)) as gateway:
        await eventually(lambda: gateway.daemon.source_manager.supervisors["app"].state.status == "down")
        for path in ("/status", "/readyz", "/metrics"):
            _, body = await gateway.admin(path)
            assert "canary-password" not in str(body)


async def test_a_log_that_lost_the_offset_gets_nothing_twice(redis: RedisServer) -> None:
    """After FLUSHALL of the log, messages would be delivered twice, or their loss not reported."""
    with redis_server() as log:
        over = {"broker": {"url": log.url, "timeout": "3s"}}  # half of it until the loss is noticed
        async with gateway_running({**config(redis), **over}) as gateway:
            await eventually(lambda: is_up(gateway))
            stream = await gateway.subscribe("/events/orders")
            for number in range(5):
                redis.publish("orders.created", str(number))
                assert (await stream.next()).json["payload"] == number
            with contextlib.closing(log.client()) as client:
                client.flushall()
            await stream.until("stream.gap")
            redis.publish("orders.created", "5")
            while (message := await stream.next()).type != "message":
                pass
            assert message.json["payload"] == 5


async def test_a_topic_of_everything_excludes_the_gateways_own_messages(redis: RedisServer) -> None:
    """With the log in the same Redis as the upstream, the gateway's own messages would become events."""
    channels = {"all": {"from": [{"source": "app", "topic": "*"}], "payload": "text", "access": "public"}}
    over = {
        "broker": {"url": redis.url, "timeout": "30s"},
        "channels": {**config(redis)["channels"], **channels},
    }
    async with gateway_running({**config(redis), **over}) as gateway:
        await eventually(lambda: is_up(gateway))
        stream = await gateway.subscribe("/events/all")
        client = redis.client()
        with contextlib.closing(client), contextlib.closing(client.pubsub()) as marks:  # type: ignore[no-untyped-call]
            marks.subscribe(redis_pubsub.MARKER_CHANNEL)
            redis.publish("one", "1")
            assert (await stream.next()).json["payload"] == "1"
            # The log told of it on a channel of its own, and the source marks its place on another one.
            await eventually(lambda: (marks.get_message() or {}).get("type") == "message")
        redis.publish("two", "2")
        assert (await stream.next()).json["payload"] == "2"
