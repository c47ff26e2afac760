"""Streams that end by their token, and by an operator's word, on every node."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.broker.memory import MemoryBroker
from gateway.config.channel_catalog import ChannelCatalog
from gateway.core.clock import unix_ms
from gateway.core.errors import Unavailable
from gateway.core.event import AppendedIds, Draft, FencingToken, SourceOffset
from gateway.hub.control_channel import ControlChannel
from gateway.streams.revocation_bus import MAX_STREAMS_PER_MESSAGE, RevocationBus
from tests.support.deadline import safety_net
from tests.support.gateway import Gateway, eventually, gateway_running
from tests.support.redis import RedisServer

SECRET = "s" * 32
CONFIG: dict[str, Any] = {
    "auth": {"jwt": {"algorithms": ["HS256"], "secret": SECRET, "leeway": "300ms"}},
    "channels": {
        "user.{id}": {
            "from": [{"source": "hooks", "topic": "u.{id}"}],
            "access": {"claims": {"sub": "{id}"}},
        },
    },
}


def bearer(subject: str, seconds: float = 600) -> dict[str, str]:
    return {"Authorization": f"Bearer {jwt.encode({'exp': time.time() + seconds, 'sub': subject}, SECRET)}"}


async def end(gateway: Gateway, query: str) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{gateway.daemon.admin_listener.port}/streams{query}"
    async with gateway.session.delete(url) as answer:
        return answer.status, await answer.json()


@pytest.mark.idle_clock
@pytest.mark.parametrize("heartbeat", [4, 60])
async def test_a_stream_ends_with_its_token(heartbeat: int) -> None:
    """Not sooner, not a heartbeat later, and between two events; it may come back with another one."""
    loop = asyncio.get_running_loop()
    async with gateway_running({**CONFIG, "timeouts": {"heartbeat": f"{heartbeat}s"}}) as gateway:
        began, expires = loop.time(), int(time.time()) + 20
        token = jwt.encode({"exp": expires, "sub": "1"}, SECRET)
        stream = await gateway.subscribe("/events/user.1", {"Authorization": f"Bearer {token}"})
        left = expires - time.time()  # it was no less when the stream opened
        closing = await stream.next()
        assert closing.json == {"reason": "token_expired", "reconnect": True}
        assert left - 0.1 <= loop.time() - began < 20 + 4
        await eventually(lambda: not gateway.daemon.streams.active)
        assert await gateway.metric('disconnects_total{reason="token_expired"}') == 1


@pytest.mark.idle_clock
async def test_a_token_in_its_leeway_opens_for_as_long() -> None:
    """What is let in must not be thrown out in the same breath."""
    config = {**CONFIG, "auth": {"jwt": {**CONFIG["auth"]["jwt"], "leeway": "20s"}}}
    async with gateway_running(config) as gateway:
        token = jwt.encode({"exp": int(time.time()) - 1, "sub": "1"}, SECRET)
        stream = await gateway.subscribe("/events/user.1", {"Authorization": f"Bearer {token}"})
        assert (await stream.next()).json["reason"] == "token_expired"


@pytest.mark.idle_clock
async def test_a_public_stream_outlives_a_token() -> None:
    """It needed none."""
    async with gateway_running({**CONFIG, "timeouts": {"connection": "20s"}}) as gateway:
        stream = await gateway.subscribe("/events/orders", bearer("1", 10))
        assert (await stream.next()).json["reason"] == "max_age"


@pytest.mark.parametrize(
    ("query", "ended"),
    [
        ("?subject=1", {"one"}),
        ("?channel=user.2", {"two", "both"}),
        ("?channel=user.{id}", {"one", "two", "both"}),
        ("?channel=orders", {"both", "public"}),
        ("?subject=2&channel=orders", {"both"}),
        ("?subject=3", set()),
    ],
)
async def test_whom_an_operator_ends(query: str, ended: set[str]) -> None:
    """A subject, a channel, all of a template, or both together; nobody else notices."""
    async with gateway_running(CONFIG) as gateway:
        streams = {
            "one": await gateway.subscribe("/events/user.1", bearer("1")),
            "two": await gateway.subscribe("/events/user.2", bearer("2")),
            "both": await gateway.subscribe("/events?channel=user.2,orders", bearer("2")),
            "public": await gateway.subscribe("/events/orders"),
        }
        assert (await end(gateway, query))[0] == 202
        for topic in ("u.1", "u.2", "orders"):
            await gateway.post(topic, "1")
        for name, stream in streams.items():
            message = await stream.next()
            assert (message.type == "stream.close") == (name in ended), name
            if name in ended:
                assert message.json == {"reason": "revoked", "reconnect": True}


async def test_nobody_is_meant_by_nothing(gateway: Gateway) -> None:
    """A slip must not end all streams."""
    for query in ("", "?subject=", "?subject=&channel="):
        status, answer = await end(gateway, query)
        assert (status, answer["error"]) == (400, "bad_query")


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
async def test_every_node_is_reached(kind: str, redis: RedisServer, tmp_path: Path) -> None:
    """Whichever node is asked."""
    url = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/log.db"
    config = {**CONFIG, "broker": {"url": url}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        streams = [await node.subscribe("/events/user.1", bearer("1")) for node in (one, two)]
        other = await two.subscribe("/events/user.2", bearer("2"))
        assert (await end(one, "?subject=1"))[0] == 202
        for stream in streams:
            assert (await stream.next()).json["reason"] == "revoked"
        await two.post("u.2", "1")
        assert (await other.next()).type == "message"


async def test_a_node_that_was_cut_off_ends_them_when_it_is_back(redis: RedisServer) -> None:
    """Freezing the log must not save a stream that was revoked meanwhile."""
    config = {**CONFIG, "broker": {"url": redis.url, "timeout": "1m"}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        stream = await two.subscribe("/events/user.1", bearer("1"))
        # Cut two off: it follows nothing, while one goes on.
        task = two.daemon.broker._tasks[0]  # type: ignore[attr-defined]
        task.cancel()
        await eventually(lambda: not two.daemon.broker.is_up)
        assert (await end(one, "?subject=1"))[0] == 202
        broker = two.daemon.broker
        broker._tasks.append(two.daemon.admin_listener.head_parser._loop.create_task(broker._follower.run()))  # type: ignore[attr-defined]
        assert (await stream.next()).json["reason"] == "revoked"


async def test_a_log_that_is_away_says_so(redis: RedisServer) -> None:
    """503: nothing is sure to have ended, and the operator must know."""
    config = {**CONFIG, "broker": {"url": redis.url, "timeout": "300ms"}}
    async with gateway_running(config) as gateway:
        redis.kill()
        await eventually(lambda: not gateway.daemon.broker.is_up)
        status, answer = await end(gateway, "?subject=1")
        assert (status, answer["error"]) == (503, "unavailable")


async def test_no_client_and_no_source_reaches_the_notices(gateway: Gateway) -> None:
    """Nodes talk on channels that no name of a client's can be."""
    stream = await gateway.open("/events/%21end")
    assert stream.status == 404
    any_name = {"{any}": {"from": [{"source": "hooks", "topic": "{any}"}], "access": "public"}}
    async with gateway_running({"channels": any_name}) as open_to_all:
        assert (await open_to_all.open("/events/%21end")).status == 404
        body = b'{"subject": null, "channel": "orders"}'
        async with open_to_all.session.post(
            f"{open_to_all.url}/hooks/hooks?topic=%21end", data=body
        ) as answer:
            assert answer.status == 404
        assert isinstance(open_to_all.daemon.catalog, ChannelCatalog)


class Away(MemoryBroker):
    """A log that cannot be reached, and says so after a while."""

    def __init__(self) -> None:
        super().__init__(history_bytes=1 << 20)
        self.asked = 0
        self.gate = asyncio.Event()

    async def append(
        self, drafts: Sequence[Draft], offset: SourceOffset | None = None, fence: FencingToken | None = None
    ) -> AppendedIds:
        self.asked += 1
        await self.gate.wait()
        raise Unavailable("away")


async def test_clients_that_open_while_the_log_is_away_wait_for_it_once() -> None:
    """In batches one after the other, the last of many would wait for minutes, and more would come meanwhile."""
    async with gateway_running(CONFIG) as gateway:
        daemon, log = gateway.daemon, Away()
        ending = RevocationBus(
            ControlChannel(log, unix_ms), daemon.streams, daemon.limits, daemon.authenticator
        )
        opening = [
            asyncio.create_task(ending._announce("client", str(number)))
            for number in range(5 * MAX_STREAMS_PER_MESSAGE)
        ]
        async with safety_net():
            while not log.asked:
                await asyncio.sleep(0)
            log.gate.set()
            assert await asyncio.gather(*opening) == [None] * len(opening)
        assert log.asked == 1
        await ending.close()
