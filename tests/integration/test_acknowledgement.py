"""Heartbeats that clients answer: on this node, on another one, on any worker, and while the log is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.model import config as ack
from gateway.core.event import CONTROL_CHANNEL_PREFIX, Event
from gateway.streams.acks import forwarder as elsewhere
from gateway.streams.acks import nonces
from gateway.streams.acks import tracker as acks
from tests.support.deadline import SAFETY_SECONDS
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, Gateway, eventually, gateway_running, merged
from tests.support.node import Node
from tests.support.redis import RedisServer, redis_server

ACK: dict[str, Any] = {"ack": {"interval": "1s", "timeout": "1s", "retry_limit": 2}}
PATIENT: dict[str, Any] = {
    "ack": {"interval": "1s", "timeout": "10m", "retry_limit": 2},
    "timeouts": {"request": "10m"},
}
"""Nobody is closed, however slow the machine is."""

OFTEN: dict[str, Any] = {**PATIENT, "ack": {"interval": "300ms", "timeout": "10m", "retry_limit": 2}}
"""The same with `ack.SHORTEST` moved out of the way."""

PATIENCE = 3.0
"""Seconds after which `ACK` closes who never answers."""

AWAY: dict[str, Any] = {"ack": {"interval": "1s", "timeout": "8s", "retry_limit": 2}}
AWAY_SECONDS = 12.0
"""Longer than `AWAY` waits for an answer."""


@pytest.fixture(autouse=True)
def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a node wait for the key that others have: at its own nonces they would say 403 for a moment."""
    monkeypatch.setattr(nonces, "FIRST_POLL_TIMEOUT_SECONDS", SAFETY_SECONDS)


class Answering:
    """A client that answers each heartbeat, at the bases of URLs that it is given, by turns."""

    def __init__(self, stream: Stream, bases: Sequence[str]) -> None:
        self.stream = stream
        self.bases = bases
        self._statuses: list[int] = []
        self.sent: list[tuple[str, str]] = []
        """Path and nonce of each answer."""
        self._connection = stream.messages[0].json["connection"]
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        # A connection for each: to a gateway with workers they land on any of them.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            while True:
                message = await self.stream.next()
                if message.type == "stream.heartbeat":
                    await self._answer(session, message.json["nonce"])

    async def _answer(self, session: aiohttp.ClientSession, nonce: str) -> None:
        path = f"/streams/{self._connection}/ack"
        self.sent.append((path, nonce))
        base = self.bases[len(self.sent) % len(self.bases)]
        async with session.post(base + path, data=nonce) as answer:
            self._statuses.append(answer.status)

    @property
    def statuses(self) -> list[int]:
        """What its answers were answered. Raises what ended it, if something did."""
        if self._task.done() and not self._task.cancelled():
            self._task.result()
        return self._statuses

    @property
    def is_open(self) -> bool:
        assert not self._task.done() or self.stream.messages[-1].type == "stream.close", self._task
        return self.stream.messages[-1].type != "stream.close"

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def answering(gateway: Gateway, *bases: str, path: str = "/events/orders") -> AsyncIterator[Answering]:
    client = Answering(await gateway.subscribe(path), bases or (gateway.url,))
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.idle_clock
async def test_who_answers_lives_and_who_does_not_is_told_why() -> None:
    """The living one's twin, which says nothing, ends between two events, may come back, and is counted."""
    async with gateway_running(ACK) as gateway, answering(gateway) as living:
        silent = await gateway.subscribe("/events/orders")
        await gateway.post("orders", "1")
        close = await silent.until("stream.close")
        assert close.json == {"reason": "unacknowledged", "reconnect": True}
        await silent.rest()
        assert silent.ended and not silent.parser.torn
        assert living.is_open and set(living.statuses) == {204}
        assert await gateway.metric("acks_missed_total") == 2
        await eventually(lambda: len(gateway.daemon.streams.active) == 1)
        assert await gateway.metric('disconnects_total{reason="unacknowledged"}') == 1
        again = await gateway.open("/events/orders", {"Last-Event-ID": silent.parser.last_id})
        assert (await again.next()).json["resume"] == "complete"


@pytest.mark.idle_clock
async def test_off_by_default(gateway: Gateway) -> None:
    """Nobody is told of it, asked, or kept an eye on."""
    stream = await gateway.subscribe("/events/orders")
    assert "ack" not in stream.messages[0].json
    assert len(gateway.daemon.ack_tracker) == 0
    assert all(each.ack_state is None for each in gateway.daemon.streams.active)


@pytest.mark.idle_clock
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_heartbeats_of_both_kinds(version: str) -> None:
    """heartbeat=event is for pages that want to see them; those that ask for an answer come besides."""
    config = {**PATIENT, "timeouts": {"heartbeat": "200ms"}}
    async with gateway_running(config) as gateway:
        stream = await gateway.subscribe("/events/orders?heartbeat=event", version=version)
        told: list[Any] = []
        while not any(told) or len(told) < 3:
            told.append((await stream.until("stream.heartbeat")).json.get("nonce"))
        assert None in told
        assert not stream.parser.torn


@pytest.mark.idle_clock
async def test_a_channel_of_its_own_mind() -> None:
    """A channel replaces the global rule, or asks nobody; a stream is asked if any of its channels asks."""
    own = {
        "stock": {"ack": {"interval": "2s", "timeout": "3s", "retry_limit": 4}},
        "news": {"ack": "none"},
    }
    async with gateway_running({**ACK, "channels": own}) as gateway:
        asked = {}
        for names in ("orders", "stock", "news", "news,stock", "news,orders,stock"):
            stream = await gateway.subscribe(f"/events?channel={names}")
            asked[names] = stream.messages[0].json.get("ack", {}).get("retry_limit")
        assert asked == {"orders": 2, "stock": 4, "news": None, "news,stock": 4, "news,orders,stock": 2}
        assert len(gateway.daemon.ack_tracker) == 4


@pytest.mark.idle_clock
async def test_a_reload_asks_new_streams_and_lets_go_of_old_ones() -> None:
    """Switched on: only who was told at connect. Switched off: nobody is closed any more."""
    async with gateway_running() as gateway:
        old = await gateway.subscribe("/events/orders")
        assert await gateway.reconfigure(ACK) == 0
        new = await gateway.subscribe("/events/orders")
        assert (await new.until("stream.close")).json["reason"] == "unacknowledged"
        assert [message.type for message in old.messages] == ["stream.open"]
        asked = await gateway.subscribe("/events/orders")
        assert (await asked.next()).type == "stream.heartbeat"
        assert await gateway.reconfigure({"ack": None}) == 0
        assert len(gateway.daemon.ack_tracker) == 0
        await asyncio.sleep(2 * PATIENCE)
        for stream in (old, asked):
            await gateway.post("orders", "1")
            assert (await stream.until("message")).json["payload"] == 1


@pytest.mark.extended
@pytest.mark.parametrize("log", ["redis", "sqlite"])
async def test_an_answer_that_lands_on_another_node(log: str, redis: RedisServer, tmp_path: Path) -> None:
    """A balancer sends the answer wherever it likes; the stream's own node hears of it."""
    url = redis.url if log == "redis" else f"sqlite:///{tmp_path}/log.db"
    config = {**PATIENT, "broker": {"url": url, "timeout": "30s"}, "channels": {"stock": ACK}}
    async with (
        gateway_running(config) as one,
        gateway_running(config) as two,
        answering(one, two.url) as elsewhere,
        answering(two, two.url) as here,
    ):
        silent = await one.subscribe("/events/stock")
        assert (await silent.until("stream.close")).json["reason"] == "unacknowledged"
        await eventually(lambda: len(elsewhere.statuses) >= 8)
        assert elsewhere.is_open and set(elsewhere.statuses) == {202}
        assert here.is_open and set(here.statuses) == {204}
        assert await one.metric("acks_missed_total") >= 2, "those of the silent one"
        assert await two.metric('acks_total{result="forwarded"}') == len(elsewhere.statuses)


@pytest.mark.extended
async def test_an_answer_that_lands_where_nobody_is_asked(redis: RedisServer) -> None:
    """While a change of the file goes round, some nodes do not know of it yet: they pass answers on all the same."""
    plain = {"broker": {"url": redis.url, "timeout": "30s"}}
    async with (
        gateway_running({**PATIENT, **plain}) as one,
        gateway_running(plain) as two,
        answering(one, two.url) as client,
    ):
        await eventually(lambda: len(client.statuses) >= 7)
        assert client.is_open and client.statuses[0] == 403 and client.statuses[-1] == 202


@pytest.mark.extended
async def test_answers_land_on_any_worker(tmp_path: Path) -> None:
    """Workers share a port, and the kernel chooses who gets a connection."""
    log = {"url": f"sqlite:///{tmp_path}/log.db"}
    config = merged(BASE, {**PATIENT, "server": {"workers": 2}, "broker": log})
    node = Node(tmp_path, config)
    clients: list[Answering] = []
    try:
        await node.start()
        base = f"http://127.0.0.1:{node.port}"
        for _ in range(6):
            stream = await Stream.open(node.port, "/events/orders")
            await stream.next()
            clients.append(Answering(stream, (base,)))
        # One of them may have had a key of its own at first.
        await eventually(lambda: all(each.statuses[-1:] in ([202], [204]) for each in clients))
        for each in clients:
            each.statuses.clear()
        await eventually(lambda: all(len(each.statuses) >= 8 for each in clients))
        assert all(client.is_open for client in clients)
        assert {status for client in clients for status in client.statuses} == {202, 204}
    finally:
        for client in clients:
            await client.close()
            client.stream.close()
        await node.kill()


@pytest.mark.extended
@pytest.mark.parametrize("how", ["frozen", "gone"])
async def test_nobody_is_closed_because_the_log_is_away(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers on other nodes cannot come then, and go on to be told when it is back."""
    monkeypatch.setattr(acks, "GRACE_SECONDS", 1.0)
    with redis_server() as server:
        config = {**AWAY, "broker": {"url": server.url, "timeout": "2s"}}
        async with (
            gateway_running(config) as one,
            gateway_running(config) as two,
            answering(one, two.url) as client,
        ):
            await eventually(lambda: client.statuses[-2:] == [202, 202])
            client.statuses.clear()
            server.freeze() if how == "frozen" else server.kill()
            await eventually(lambda: not one.daemon.broker.is_up)
            await asyncio.sleep(AWAY_SECONDS)
            server.thaw() if how == "frozen" else server.start()
            await eventually(
                lambda: (
                    one.daemon.ack_tracker.is_log_reachable() and two.daemon.ack_tracker.is_log_reachable()
                )
            )
            before = len(client.statuses)
            await eventually(lambda: len(client.statuses) >= before + 4)
            assert client.is_open and set(client.statuses) == {202}
            assert await one.metric('disconnects_total{reason="unacknowledged"}') == 0


async def test_garbage_is_not_told_to_the_log(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was not on the stream cannot write into the log, and who was can write it once."""
    monkeypatch.setattr(ack, "MIN_ACK_INTERVAL_SECONDS", 0.1)
    told: list[dict[str, int]] = []

    def note(event: Event) -> None:
        if event.channel == CONTROL_CHANNEL_PREFIX + elsewhere.ACKS_KIND:
            told.append(json.loads(event.payload)["answered"])

    config = {**OFTEN, "broker": {"url": redis.url, "timeout": "30s"}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        two.daemon.hub.on_control_event.add(note)
        async with answering(one, two.url) as client:
            await eventually(lambda: len(client.statuses) >= 1)
            path, nonce = client.sent[0]
            key, number, _ = nonce.split("-")
            forged = [f"{key}-{number}-{each:032x}" for each in range(300)] + [
                "x",
                "",
                "\x00",
                "{}",
                "é",
            ] * 20
            async with aiohttp.ClientSession() as session:

                async def post(body: str, path: str = path) -> int:
                    async with session.post(two.url + path, data=body.encode()) as answer:
                        return answer.status

                statuses = await asyncio.gather(*(post(body) for body in forged))
                assert set(statuses) == {400, 403}
                unknown = [post(nonce, f"/streams/{each:024x}/ack") for each in range(300)]
                assert set(await asyncio.gather(*unknown)) == {403}
                assert set(await asyncio.gather(*(post(nonce) for _ in range(300)))) == {202}
            answers = len(client.statuses)
            await eventually(lambda: len(client.statuses) > answers + 1)
            assert client.is_open
        sent = [(connection, number) for each in told for connection, number in each.items()]
        assert {connection for connection, _ in sent} == {path.split("/")[2]}
        assert len(sent) == len(set(sent)) <= len(client.statuses)


async def test_what_waits_for_the_log_is_bounded(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away, each stream's newest answer waits, and more streams than that are told to try again."""
    monkeypatch.setattr(ack, "MIN_ACK_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(elsewhere, "MAX_PENDING", 3)
    monkeypatch.setattr(elsewhere, "BATCH_SECONDS", 600)
    config = {**OFTEN, "broker": {"url": redis.url, "timeout": "30s"}}
    async with gateway_running(config) as one, gateway_running(config) as two:
        questions = []
        for _ in range(4):
            stream = await one.subscribe("/events/orders")
            nonce = (await stream.until("stream.heartbeat")).json["nonce"]
            questions.append((f"/streams/{stream.messages[0].json['connection']}/ack", nonce))
        got = []
        for path, nonce in [*questions, questions[0]]:
            async with one.session.post(two.url + path, data=nonce) as answer:
                got.append((answer.status, answer.headers.get("Retry-After")))
        assert got == [(202, None)] * 3 + [(503, "2"), (202, None)]
        assert len(two.daemon.ack_forwarder._pending) == 3
