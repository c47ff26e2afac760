"""Going over to another configuration: what differs changes at once, and nothing else notices."""

import asyncio
import time
from typing import Any

import jwt
import pytest

from gateway.core.errors import StartupError
from tests.support.eventsource import Stream
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer

SECRET = "a secret of thirty-two bytes, or so"
AUTH = {"jwt": {"algorithms": ["HS256"], "secret": SECRET}}


def channel(topic: str, **more: Any) -> dict[str, Any]:
    return {"from": [{"source": "hooks", "topic": topic}], "access": "public", **more}


def token(**claims: Any) -> dict[str, str]:
    signed = jwt.encode({"exp": time.time() + 600, **claims}, SECRET, algorithm="HS256")
    return {"Authorization": f"Bearer {signed}"}


async def close_of(stream: Stream) -> Any:
    """Read a stream to its end and return the data of its ``stream.close``."""
    await stream.rest()
    last = stream.messages[-1]
    assert last.type == "stream.close" and stream.ended and not stream.parser.torn
    return last.json


async def payloads(stream: Stream, count: int) -> list[Any]:
    return [(await stream.next()).json["payload"] for _ in range(count)]


async def test_only_the_changed_channel_closes(gateway: Gateway) -> None:
    """A new format is another stream; streams of other channels go on in their connection."""
    orders, stock = await gateway.subscribe("/events/orders"), await gateway.subscribe("/events/stock")
    both = await gateway.subscribe("/events?channel=orders,news")
    await gateway.post("stock", "1")
    ended = await gateway.reconfigure({"channels": {"orders": {"format": "data"}}})
    assert ended == 2
    assert await close_of(orders) == {"reason": "reconfigured", "reconnect": True}
    assert await close_of(both) == {"reason": "reconfigured", "reconnect": True}
    await gateway.post("stock", "2")
    assert await payloads(stock, 2) == [1, 2]
    assert await gateway.metric('disconnects_total{reason="reconfigured"}') == 2


async def test_resume_over_a_change_of_format(gateway: Gateway) -> None:
    """Who comes back gets everything once, in the new format, from the log and not from the old ring."""
    orders = await gateway.subscribe("/events/orders")
    await gateway.post("orders", "1")
    assert await payloads(orders, 1) == [1]
    changing = asyncio.create_task(gateway.reconfigure({"channels": {"orders": {"format": "data"}}}))
    await gateway.post("orders", "2")
    await changing
    await orders.rest()
    got = [message.json["payload"] for message in orders.messages if message.type == "message"]
    again = await gateway.open("/events/orders", {"Last-Event-ID": orders.parser.last_id})
    await gateway.post("orders", "3")
    await again.next()
    assert again.messages[0].json["resume"] == "complete"
    missing = [2, 3] if got == [1] else [3]
    assert [(await again.next()).json for _ in missing] == missing


async def test_what_was_read_for_others_is_not_in_the_old_format(gateway: Gateway) -> None:
    """A herd shares what was read of the log; behind a reload it must not get what was read before it."""
    for number in range(5):
        await gateway.post("orders", str(number))
    await payloads(await gateway.subscribe("/events/orders?last=5"), 5)
    await gateway.reconfigure({"channels": {"orders": {"format": "data"}}})
    again = await gateway.subscribe("/events/orders?last=5")
    assert [(await again.next()).json for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_removed_channel(gateway: Gateway) -> None:
    """Its streams end, and whoever comes back learns that there is none; posts to it go nowhere."""
    orders = await gateway.subscribe("/events/orders")
    await gateway.reconfigure({"channels": {"orders": None}})
    assert (await close_of(orders))["reason"] == "reconfigured"
    assert (await gateway.open("/events/orders")).status == 404
    async with gateway.session.post(f"{gateway.url}/hooks/hooks?topic=orders", data="1") as answer:
        assert answer.status == 404


async def test_an_added_channel(gateway: Gateway) -> None:
    """It can be subscribed and fed at once, and its metrics are there."""
    assert await gateway.reconfigure({"channels": {"alarms": channel("alarms")}}) == 0
    alarms = await gateway.subscribe("/events/alarms")
    await gateway.post("alarms", "1")
    assert await payloads(alarms, 1) == [1]
    assert await gateway.metric('channel_connections{channel="alarms"}') == 1
    assert await gateway.metric('events_published_total{channel="alarms"}') == 1


@pytest.mark.idle_clock
async def test_what_streams_do_not_see_closes_none(gateway: Gateway) -> None:
    """Feeds, history's length, staleness and settings are no reason to make anybody come back."""
    orders = await gateway.subscribe("/events/orders")
    other = {
        "from": [{"source": "hooks", "topic": "buys"}],
        "history": {"events": 7, "age": "1m"},
        "stale_after": "1h",
        "access": "public",
    }
    over = {
        "channels": {"orders": other, "extra": channel("extra")},
        "timeouts": {"heartbeat": "1s", "retry": "9s", "write": "30s", "request": "3s", "connection": "2h"},
        "limits": {"connections": 10, "event_bytes": "1KiB", "channels_per_stream": 1},
    }
    assert await gateway.reconfigure(over) == 0
    await gateway.post("buys", "1")
    assert await payloads(orders, 1) == [1]
    async with gateway.session.post(f"{gateway.url}/hooks/hooks?topic=orders", data="1") as answer:
        assert answer.status == 404
    async with gateway.session.post(f"{gateway.url}/hooks/hooks?topic=buys", data="1" * 2000) as answer:
        assert answer.status == 413
    assert (await gateway.open("/events?channel=orders,stock")).status == 400
    again = await gateway.subscribe("/events/orders")
    assert again.parser.retry == 9000
    await eventually(lambda: _read_on(orders, lambda: orders.parser.comments > 0))


async def _read_on(stream: Stream, until: Any) -> bool:
    while not until():
        await stream.read()
    return True


async def test_streams_that_lost_their_permission_end() -> None:
    """A rule that is narrower now ends whom it does not let in, and nobody else."""
    over = {"auth": AUTH, "channels": {"orders": {"access": "token"}, "u.{id}": channel("u:{id}")}}
    over["channels"]["u.{id}"]["access"] = "token"
    async with gateway_running(over) as gateway:
        clerk = await gateway.subscribe("/events/orders", token(sub="1", channels=["orders"]))
        chief = await gateway.subscribe("/events/orders", token(sub="2", channels=["*"], role="chief"))
        own = await gateway.subscribe("/events/u.2", token(sub="2", channels=["*"]))
        news = await gateway.subscribe("/events/news")
        await gateway.reconfigure({"channels": {"u.{id}": {"access": {"claims": {"sub": "{id}"}}}}})
        ended = await gateway.reconfigure({"channels": {"news": {"access": "token"}}})
        assert ended == 1
        assert (await close_of(news))["reason"] == "revoked"
        ended = await gateway.reconfigure({"channels": {"orders": {"access": {"claims": {"role": "chief"}}}}})
        # Claims that no rule needs are not kept: such a client comes back and shows its token again.
        assert ended == 2
        assert (await close_of(clerk))["reason"] == "revoked"
        assert (await close_of(chief))["reason"] == "revoked"
        chief = await gateway.subscribe("/events/orders", token(sub="2", role="chief"))
        assert (await gateway.open("/events/orders", token(sub="1"))).status == 403
        await gateway.post("orders", "1")
        assert await payloads(chief, 1) == [1]
        assert own.messages[-1].type == "stream.open"


async def test_a_withdrawn_key_ends_its_streams() -> None:
    """A secret that leaked is changed so that who has a token of it is out; public streams do not notice."""
    old = {**AUTH["jwt"], "issuer": "old"}
    over = {"auth": {"jwt": [old]}, "channels": {"orders": {"access": "token"}}}
    async with gateway_running(over) as gateway:
        orders = await gateway.subscribe("/events/orders", token(channels=["orders"], iss="old"))
        news = await gateway.subscribe("/events/news")
        other = {"algorithms": ["HS256"], "secret": SECRET[::-1], "issuer": "new"}
        assert await gateway.reconfigure({"auth": {"jwt": [other, old]}}) == 0
        assert await gateway.reconfigure({"auth": {"jwt": [other]}}) == 1
        assert (await close_of(orders))["reason"] == "revoked"
        assert (await gateway.open("/events/orders", token(channels=["orders"], iss="old"))).status == 401
        await gateway.post("news", "1")
        assert await payloads(news, 1) == [1]


async def test_pages_that_may_not_read_any_more_lose_their_streams() -> None:
    """An origin that was taken from the list is out at once, and others stay."""
    over = {"cors": {"origins": ["https://a.example", "https://b.example"]}}
    async with gateway_running(over) as gateway:
        a = await gateway.subscribe("/events/orders", {"Origin": "https://a.example"})
        b = await gateway.subscribe("/events/orders", {"Origin": "https://b.example"})
        no_page = await gateway.subscribe("/events/orders")
        assert await gateway.reconfigure({"cors": {"origins": ["https://b.example"]}}) == 1
        assert (await close_of(a))["reason"] == "revoked"
        await gateway.post("orders", "1")
        assert await payloads(b, 1) == await payloads(no_page, 1) == [1]


async def test_a_fixed_name_takes_over_from_a_template() -> None:
    """Whoever read it as one of the template's must come under the new rule; others stay."""
    async with gateway_running({"channels": {"u.{id}": channel("u:{id}")}}) as gateway:
        vip, other = await gateway.subscribe("/events/u.vip"), await gateway.subscribe("/events/u.1")
        fixed = channel("u:vip", format="data")
        assert await gateway.reconfigure({"channels": {"u.vip": fixed}}) == 1
        assert (await close_of(vip))["reason"] == "reconfigured"
        again = await gateway.subscribe("/events/u.vip")
        await gateway.post("u:vip", "1")
        await gateway.post("u:1", "2")
        assert (await again.next()).json == 1
        assert await payloads(other, 1) == [2]


@pytest.mark.idle_clock
async def test_a_template_takes_over_from_a_fixed_name() -> None:
    """While somebody slow still reads the end of the old one, newcomers are the template's, and stay so."""
    fixed = channel("u:vip", format="data")
    over = {"channels": {"u.{id}": channel("u:{id}"), "u.vip": fixed}, "limits": {"event_bytes": "8MiB"}}
    async with gateway_running(over) as gateway:
        slow = await gateway.subscribe("/events/u.vip")
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(3):
            await gateway.post("u:vip", '"' + "x" * 6_000_000 + '"')
        await eventually(lambda: gateway.daemon.streams.heartbeats.stalled)
        assert await gateway.reconfigure({"channels": {"u.vip": None}}) == 1
        assert len(gateway.daemon.streams.active) == 1
        new = await gateway.subscribe("/events/u.vip")
        await gateway.post("u:vip", "1")
        assert await payloads(new, 1) == [1]
        assert await gateway.reconfigure({"timeouts": {"retry": "9s"}}) == 0
        await gateway.post("u:vip", "2")
        assert await payloads(new, 1) == [2]


async def test_webhooks_change_without_a_pause() -> None:
    """A new secret counts for the next post; a source that is gone is 404."""
    async with gateway_running() as gateway:
        await gateway.reconfigure({"sources": {"hooks": {"verify": {"none": None, "bearer": ["t" * 20]}}}})
        url = f"{gateway.url}/hooks/hooks?topic=orders"
        async with gateway.session.post(url, data="1") as answer:
            assert answer.status == 401
        async with gateway.session.post(
            url, data="1", headers={"Authorization": f"Bearer {'t' * 20}"}
        ) as answer:
            assert answer.status == 200
        assert gateway.daemon.source_manager.supervisors["hooks"].state.restarts == 0
        more = {"sources": {"more": {"type": "webhook", "verify": {"none": True}}}}
        await gateway.reconfigure(more)
        async with gateway.session.post(f"{gateway.url}/hooks/more?topic=orders", data="1") as answer:
            assert answer.status == 404  # no channel takes it
        await gateway.reconfigure({"sources": {"more": None}})
        async with gateway.session.post(f"{gateway.url}/hooks/more?topic=orders", data="1") as answer:
            assert (await answer.json())["error"] == "unknown_source"


async def test_topics_of_pubsub_change_without_a_gap(redis: RedisServer) -> None:
    """Pub/sub has no memory: an added channel must not cost the others a message, or a gap."""
    over = {
        "sources": {"app": {"type": "redis-pubsub", "url": redis.url, "timeout": "60s"}},
        "channels": {"a": {"from": [{"source": "app", "topic": "a"}], "access": "public"}},
    }
    async with gateway_running(over) as gateway:
        a = await gateway.subscribe("/events/a")
        supervisor = gateway.daemon.source_manager.supervisors["app"]
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                sent += 1
                await asyncio.to_thread(redis.publish, "a", str(sent))
                await asyncio.sleep(0.002)

        sending = asyncio.create_task(send())
        try:
            for topics in (["b", "c.*"], ["*"], ["b"], []):
                added = {f"x{n}": [{"source": "app", "topic": topic}] for n, topic in enumerate(topics)}
                gone = {f"x{n}": None for n in range(len(topics), 2)}
                changed = {name: {"from": routes, "access": "public"} for name, routes in added.items()}
                await gateway.reconfigure({"channels": {**changed, **gone}})
                before = sent
                while sent < before + 100:
                    await asyncio.sleep(0.01)
                if topics == ["b", "c.*"]:
                    b = await gateway.subscribe("/events/x0")
                    await reaches(redis, "b", b)
        finally:
            sending.cancel()
        got = await payloads(a, sent - 1)
        assert got == list(range(1, sent))
        assert gateway.daemon.source_manager.supervisors["app"] is supervisor
        assert supervisor.state.restarts == 0
        _, status = await gateway.admin("/metrics")
        assert 'gaps_total{reason="source_interrupted"} 1' not in status


async def reaches(redis: RedisServer, topic: str, stream: Stream) -> None:
    """Publish until something comes: nobody promised that the first one does."""
    reading = asyncio.create_task(stream.next())
    while not reading.done():
        await asyncio.to_thread(redis.publish, topic, "1")
        await asyncio.wait((reading,), timeout=0.1)
    await reading


async def test_a_source_with_another_url_connects_again(redis: RedisServer) -> None:
    """It reads from the other server, and the old connection is gone."""
    over = {
        "sources": {"app": {"type": "redis-pubsub", "url": redis.url, "timeout": "60s"}},
        "channels": {"a": {"from": [{"source": "app", "topic": "a"}], "access": "public"}},
    }
    async with gateway_running(over) as gateway:
        a = await gateway.subscribe("/events/a")
        await gateway.reconfigure({"sources": {"app": {"url": f"{redis.url}/3"}}})
        await eventually(lambda: gateway.daemon.source_manager.supervisors["app"].state.status == "up")
        await eventually(lambda: gateway.daemon.source_manager.supervisors["app"].has_lease)
        await asyncio.to_thread(redis.publish, "a", "1")
        messages = [await a.next()]
        while messages[-1].type == "stream.gap":  # events of the interruption may be lost, and are reported
            messages.append(await a.next())
        assert messages[-1].json["payload"] == 1
        await gateway.reconfigure({"sources": {"app": {"url": ""}}})
        assert gateway.daemon.source_manager.disabled["app"].status == "off"
        await gateway.reconfigure({"channels": {"a": None}, "sources": {"app": None}})
        assert [source["name"] for source in (await gateway.admin("/status"))[1]["sources"]] == ["hooks"]


async def test_nobody_waits_for_a_server_that_is_frozen(redis: RedisServer) -> None:
    """It is when a server hangs that its URL is changed: a reload that waited for it would be too late."""
    app = {"type": "redis-pubsub", "url": redis.url, "timeout": "10m"}  # longer than this test may take
    over = {
        "sources": {"app": app, "other": app},
        "channels": {"a": {"from": [{"source": "app", "topic": "a"}], "access": "public"}},
    }
    async with gateway_running(over) as gateway:
        upstreams = gateway.daemon.source_manager
        old = upstreams.supervisors["app"]
        redis.freeze()
        try:
            for number in (3, 4):
                await gateway.reconfigure({"sources": {"app": {"url": f"{redis.url}/{number}"}}})
            assert old.state.status == "up" and upstreams.supervisors["app"].state.status == "starting"
            alarms = {"alarms": channel("alarms")}
            await gateway.reconfigure({"sources": {"app": {"critical": True}}, "channels": alarms})
            await gateway.post("alarms", "1")
        finally:
            redis.thaw()
        await eventually(lambda: upstreams.supervisors["app"].has_lease)
        await reaches(redis, "a", await gateway.subscribe("/events/a"))


async def test_limits_change_for_whoever_comes_next(gateway: Gateway) -> None:
    """Streams that are open stay, and count."""
    first = await gateway.subscribe("/events/orders")
    await gateway.reconfigure({"limits": {"connections": 1}})
    refused = await gateway.open("/events/orders")
    await refused.rest()
    assert refused.messages[-1].json["reason"] == "overloaded"
    await gateway.reconfigure({"limits": {"connections": 2, "connect_rate": "1/s"}})
    await gateway.subscribe("/events/orders")
    assert first.messages[-1].type == "stream.open"
    assert await gateway.metric("connections_limit") == 2


@pytest.mark.parametrize(
    "over",
    [
        {"auth": {"jwt": {"algorithms": ["RS256"], "public_key_file": "/nowhere.pem"}}},
        {"limits": {"connections": 9_999_999}},
    ],
    ids=["key", "descriptors"],
)
async def test_what_cannot_be_prepared_changes_nothing(gateway: Gateway, over: dict[str, Any]) -> None:
    """All or nothing: a key file that is not there must not leave half of another configuration behind."""
    before = gateway.daemon.config
    orders = await gateway.subscribe("/events/orders")
    with pytest.raises(StartupError):
        await gateway.reconfigure({**over, "channels": {"orders": {"format": "data"}}})
    assert gateway.daemon.config is before
    await gateway.post("orders", "1")
    assert await payloads(orders, 1) == [1]


async def test_streams_that_open_during_a_change_are_looked_at() -> None:
    """Between the decision and the first byte the rules may become others: the new ones hold."""
    over = {"auth": AUTH, "channels": {"orders": {"access": "token"}}}
    async with gateway_running(over) as gateway:
        opening = [
            asyncio.create_task(gateway.open("/events/orders?last=5", token(channels=["orders"])))
            for _ in range(50)
        ]
        await asyncio.sleep(0)
        await gateway.reconfigure({"channels": {"orders": {"access": {"claims": {"role": "chief"}}}}})
        for stream in await asyncio.gather(*opening):
            await stream.rest()
            assert stream.status == 403 or stream.messages[-1].json["reason"] == "revoked"
        assert not gateway.daemon.streams.active
