"""The commands of the README's first page do what it says."""

import contextlib
import re
import shlex

import yaml

from tests.docs.pages import ROOT
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer
from tests.support.shell import output

README = (ROOT / "README.md").read_text()


def shipped(redis_url: str) -> dict[str, object]:
    """Return config/gateway.yaml on ports of its own, with nothing on the disk."""
    text = (ROOT / "config/gateway.yaml").read_text().replace("${REDIS_URL:-}", redis_url)
    data = yaml.safe_load(text.replace("${KAFKA_BROKERS:-}", ""))
    own = {"server": {**data["server"], "listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}}
    return {**data, **own, "logging": {"level": "error"}, "broker": {"url": "memory://"}}


async def test_the_curl_line_shows_an_event_arrive() -> None:
    """The first command that a newcomer tries fails."""
    (line,) = re.findall(r"^curl -sd .*$", README, re.M)
    async with gateway_running(shipped("")) as gateway:
        own = line.replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}")
        out = await output(own, '"payload":{"hello":"world"}')
    assert '{"accepted":1,"ids":["' in out


async def test_the_redis_lines_reach_a_stream(redis: RedisServer) -> None:
    """A backend that publishes to Redis as documented reaches no stream."""
    lines = re.findall(r"^redis-cli (.*)$", README, re.M)
    assert {line.split()[0] for line in lines} == {"publish", "xadd"}
    async with gateway_running(shipped(redis.url)) as gateway:
        stream = await gateway.subscribe("/events/orders")
        await eventually(lambda: is_read(gateway))
        with contextlib.closing(redis.client()) as client:
            for line in lines:
                client.execute_command(*shlex.split(line))  # type: ignore[no-untyped-call]
                event = await stream.next()
                payload, *type_ = re.findall(r"'(\{.*?\})'(?: type (\S+))?", line)[0]
                assert event.json["payload"] == yaml.safe_load(payload)
                assert event.type == (type_[0] or "message")


async def is_read(gateway: Gateway) -> bool:
    """Return whether both sources of the shipped file are up."""
    return all([await gateway.metric(f'source_up{{source="{name}"}}') for name in ("app", "stream")])
