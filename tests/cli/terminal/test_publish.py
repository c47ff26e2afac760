"""`sse-gateway publish`: a test event arrives by the way that real ones take."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.terminal.command import called
from tests.support.gateway import BASE, Gateway, eventually, gateway_running, merged
from tests.support.kafka import kafka_server
from tests.support.redis import RedisServer

KEY = "whsec_Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5"


def channel(source: str, topic: str, **more: Any) -> dict[str, Any]:
    """Return a public channel."""
    return {"from": [{"source": source, "topic": topic}], "access": "public", **more}


OPEN: dict[str, Any] = {
    "sources": {
        "signed": {"type": "webhook", "verify": {"standard_webhooks": [KEY]}},
        "github": {"type": "webhook", "verify": {"github": ["canary"]}, "topic": "git"},
        "proxy": {"type": "webhook", "verify": {"basic": ["user:canary"]}, "format": "rest-proxy"},
        "list": {"type": "webhook", "verify": {"bearer": ["canary"]}, "format": "array"},
        "cloud": {"type": "webhook", "verify": {"access_token": ["canary"]}, "format": "cloudevents"},
        "mapped": {"type": "webhook", "verify": {"none": True}, "event": {"type": "{headers.x-kind}"}},
        "off": {"type": "redis-pubsub", "url": ""},
    },
    "channels": {
        "orders": channel("signed", "orders.*"),
        "git": channel("github", "git"),
        "proxied": channel("proxy", "p"),
        "listed": channel("list", "l"),
        "clouds": channel("cloud", "c"),
        "mapped": channel("mapped", "m"),
        "notes": channel("signed", "notes", payload="text"),
        "user.{id}": channel("signed", "user:{id}", payload="envelope"),
        "off": channel("off", "x"),
    },
}


def written(folder: Path, over: dict[str, Any]) -> str:
    """Write a configuration and return its file."""
    file = folder / "gateway.yaml"
    file.write_text(json.dumps(merged(BASE, over)))
    return str(file)


SENT = [
    ("orders", ('{"a":1.00}',), "message", '{"a":1.00}'),
    ("orders", ("[1,2]",), "message", "[1,2]"),
    ("orders", ("2", "--type", "order.made"), "order.made", "2"),
    ("git", ("--type", "push", "{}"), "push", "{}"),
    ("proxied", ("[3]",), "message", "[3]"),
    ("listed", ("4",), "message", "4"),
    ("clouds", ("5",), "test", "5"),
    ("mapped", ("6", "--type", "a.b"), "a.b", "6"),
    ("notes", ("{ no JSON",), "message", "{ no JSON"),
    ("user.42", ("--type", "hi", '"é"'), "hi", '"é"'),
]
"""Channel, arguments, and the type and payload that arrive."""


async def test_it_arrives_by_webhook(tmp_path: Path) -> None:
    """Signed and wrapped as the source wants it, it is one event with this payload, byte for byte."""
    async with gateway_running(OPEN) as gateway:
        common = ("--config", written(tmp_path, OPEN), "--url", gateway.url)
        for name, arguments, type_, payload in SENT:
            stream = await gateway.subscribe(f"/events/{name}?format=data")
            status, out, err = await called("publish", name, *arguments, *common)
            assert status == 0, (arguments, err)
            event = await stream.next()
            assert (event.type, event.data) == (type_, payload)
            assert out in ("", f"{event.id}\n"), arguments
            assert f"POST {gateway.url}/hooks/" in err
            assert "canary" not in err
            stream.close()


async def test_several_and_once(tmp_path: Path) -> None:
    """--count sends so many with numbers of their own; --key makes one of them."""
    async with gateway_running(OPEN) as gateway:
        stream = await gateway.subscribe("/events/orders?format=data")
        common = (
            "--config",
            written(tmp_path, OPEN),
            "--url",
            gateway.url,
            "--count",
            "3",
            "--interval",
            "1ms",
        )
        status, out, _ = await called("publish", "orders", *common)
        events = [await stream.next() for _ in range(3)]
        assert (status, out.split()) == (0, [event.id for event in events])
        assert [event.json["number"] for event in events] == [1, 2, 3]
        (tmp_path / "payload").write_text("7\n")
        status, out, _ = await called(
            "publish",
            "orders",
            f"@{tmp_path}/payload",
            "--key",
            "k",
            *common,
            "--count",
            "2",
            "--interval",
            "1100ms",
        )
        assert (status, len(out.split()), len(set(out.split()))) == (0, 2, 1)
        assert (await stream.next()).data == "7"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("odrers",), "did you mean 'orders'?"),
        (("user.{id}",), "name one of its channels, such as user.42"),
        (("orders", "{a"), "requires JSON, and this is not"),
        (("orders", "--source", "github"), "these do: signed"),
        (("orders", "--topic", "news"), "accepts the topic 'orders.*', not 'news'"),
        (("listed", "--type", "x"), "have no type"),
        (("off",), "is off: its url is empty"),
        (("orders", "@no-such-file"), "No such file"),
        (("orders", "--url", "http://127.0.0.1:1"), "does not answer: Connection refused"),
    ],
)
async def test_what_cannot_be_sent_is_told(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """The command exits 1 with reason and fix, and sends nothing."""
    status, out, err = await called("publish", *arguments, "--config", written(tmp_path, OPEN))
    assert (status, out, "canary" in err) == (1, "", False)
    assert words in err


async def test_a_refusal_is_told(tmp_path: Path, gateway: Gateway) -> None:
    """Another configuration than the running gateway's is the usual cause."""
    status, out, err = await called(
        "publish", "orders", "--config", written(tmp_path, OPEN), "--url", gateway.url
    )
    assert (status, out) == (1, "")
    assert "404 unknown_source" in err
    assert "the running gateway has this configuration" in err


async def test_redis(tmp_path: Path, redis: RedisServer) -> None:
    """A PUBLISH without a subscriber is lost, and the command reports that."""
    over = {
        "sources": {
            "app": {"type": "redis-pubsub", "url": redis.url},
            "stream": {"type": "redis-stream", "url": redis.url, "payload": "body"},
        },
        "channels": {"room.{id}": channel("app", "room:*:{id}"), "stream": channel("stream", "s")},
    }
    file = written(tmp_path, over)
    status, _, err = await called("publish", "room.1", "--config", file)
    assert (status, "no subscriber at that Redis" in err) == (1, True)
    async with gateway_running(over) as gateway:
        stream = await gateway.subscribe("/events?channel=room.1,stream&format=data")
        await eventually(lambda: up(gateway))
        status, _, err = await called("publish", "room.1", "1", "--config", file)
        assert (status, "PUBLISH room:test:1: 1 subscribed" in err) == (0, True), err
        assert (await stream.next()).data == "1"
        status, _, err = await called("publish", "stream", "2", "--type", "t", "--config", file)
        assert (status, "XADD s: the entry" in err) == (0, True), err
        event = await stream.next()
        assert (event.type, event.data) == ("t", "2")
    redis.kill()
    status, _, err = await called("publish", "stream", "--config", file)
    assert (status, "the upstream of stream" in err) == (1, True)


async def up(gateway: Gateway) -> bool:
    """Tell whether all sources are read."""
    return all([await gateway.metric(f'source_up{{source="{name}"}}') for name in ("app", "stream")])


async def test_kafka(tmp_path: Path) -> None:
    """A record with the key that the channel's name is made of."""
    async with kafka_server() as server:
        await server.create({"users": 1})
        route = {"source": "kafka", "topic": "users", "fields": {"id": "{key}"}}
        over = {
            "sources": {"kafka": {"type": "kafka", "brokers": server.brokers, "start": "oldest"}},
            "channels": {"user.{id}": {"from": [route], "access": "public"}},
        }
        status, _, err = await called("publish", "user.42", '"x"', "--config", written(tmp_path, over))
        assert (status, "Kafka users: partition 0, offset 0" in err) == (0, True), err
        async with gateway_running(over) as gateway:
            stream = await gateway.subscribe("/events/user.42?last=1&format=data")
            assert (await stream.next()).data == '"x"'
