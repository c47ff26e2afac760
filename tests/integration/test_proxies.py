"""The proxies of deploy/, as they are shipped, in front of two gateways: nothing is held back, cut or lost."""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from bench.process import free_port
from gateway.cli.doctor.streaming import ProbeTimeouts
from gateway.cli.finding import Level
from gateway.http.routes.client import CACHE_FOREVER, CLIENT_SCRIPT
from tests.cli.doctor.examined import APP, examine
from tests.support.authority import Authority
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.gateway import eventually
from tests.support.needs import need
from tests.support.node import Node, kill_all
from tests.support.proxies import GATEWAYS, RECIPES, Proxy, proxy_running
from tests.support.subscriber import Subscriber, client, follow

pytestmark = [pytest.mark.extended, pytest.mark.parametrize("name", list(RECIPES))]

IDLE = 8
"""Seconds of silence after which the tests' proxies end a stream. Heartbeats come every second: the rest is for a slow machine."""

CLIENT = "127.0.0.77"
"""Where the tests' client is."""

BODY_BYTES = 10_000_000


def config(folder: Path, heartbeat: str, timeouts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "server": {"trusted_proxies": ["127.0.0.1/32"]},
        "broker": {"url": f"sqlite:///{folder}/log.db"},
        "cors": {"origins": [APP], "credentials": True},
        "timeouts": {"heartbeat": heartbeat, "drain": "1s", "retry": "100ms", **timeouts},
        "limits": {"event_bytes": "16MiB"},
        "sources": {
            "hooks": {"type": "webhook", "verify": {"none": True}},
            "guarded": {"type": "webhook", "verify": {"bearer": ["not-the-senders-token"]}},
        },
        "channels": {
            "orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"},
            "large": {"from": [{"source": "hooks", "topic": "large"}], "access": "public"},
        },
    }


@dataclass
class Deployed:
    """Two gateways and the proxy in front of them."""

    nodes: list[Node]
    url: str
    client: httpx.AsyncClient
    """A browser: HTTP/2."""
    sender: httpx.AsyncClient
    """A sender of webhooks: HTTP/1.1, where a proxy may answer before it has read the body. Over HTTP/2,
    httpx raises LocalProtocolError when such an answer closes the stream under its upload."""
    authority: Authority
    proxy: Proxy

    async def post(
        self, body: bytes | str, topic: str = "orders", key: str = "", source: str = "hooks"
    ) -> int:
        """Post through the proxy and return the status."""
        headers = {"Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        answer = await self.sender.post(
            f"{self.url}/hooks/{source}?topic={topic}", content=body, headers=headers
        )
        return answer.status_code

    async def publish(self, number: int) -> None:
        """Post a number until it is accepted; the key makes it once."""
        async with safety_net():
            while await self._refused(number):
                await asyncio.sleep(0.05)

    async def _refused(self, number: int) -> bool:
        try:
            return await self.post(str(number), key=str(number)) != 200
        except httpx.TransportError:
            return True


@asynccontextmanager
async def deployed(
    name: str,
    folder: Path,
    *,
    heartbeat: str = "1s",
    idle: int = 60,
    running: int = 1,
    timeouts: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Deployed]:
    """Run a proxy before two gateways, of which so many are running."""
    authority = Authority(folder)
    pair = authority.issue(common="127.0.0.1", addresses=["127.0.0.1"], ends=60)
    ports = free_port(), free_port()
    nodes = [Node(folder, config(folder, heartbeat, timeouts), host=host, ports=ports) for host in GATEWAYS]
    try:
        await asyncio.gather(*(node.start() for node in nodes[:running]))
        with proxy_running(name, folder, nodes, pair, idle=idle) as proxy:
            async with (
                client(authority.client(), CLIENT) as browser,
                client(authority.client(), CLIENT, http2=False) as sender,
            ):
                url = f"https://127.0.0.1:{proxy.port}"
                found = Deployed(nodes, url, browser, sender, authority, proxy)
                if running:
                    await eventually(lambda: _answers(found))
                yield found
    finally:
        await kill_all(nodes)


async def _answers(found: Deployed) -> bool:
    """Tell whether the proxy has seen that its gateways are ready."""
    answer = await found.client.head(f"{found.url}/events/orders", headers={"Origin": APP})
    return str(answer.headers.get("Content-Type")) == "text/event-stream; charset=utf-8"


def _clients(nodes: list[Node]) -> list[str]:
    """Return the addresses of streams, as the gateways logged them."""
    return [line["client"] for line in _lines(nodes, "stream_opened")]


def _lines(nodes: list[Node], event: str) -> list[dict[str, Any]]:
    lines = (line for node in nodes if node.log.exists() for line in node.lines())
    return [line for line in lines if line["event"] == event]


@asynccontextmanager
async def subscribed(found: Deployed) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(found.client, f"{found.url}/events/orders")
    task = asyncio.create_task(subscriber.run())
    try:
        yield subscriber
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_doctor_finds_nothing(name: str, tmp_path: Path) -> None:
    """A stream lives for longer than the idle timeout; nothing is buffered, compressed or left out on the way."""
    async with deployed(name, tmp_path, idle=IDLE) as found:
        patience = ProbeTimeouts(
            listen_seconds=IDLE + 2,
            heartbeat_seconds=1.0,
            connect_seconds=SAFETY_SECONDS,
            response_seconds=SAFETY_SECONDS,
            late_seconds=IDLE,
        )
        seen = await examine(f"{found.url}/events/orders", ca=str(found.authority.file), patience=patience)
        assert [each for each in seen.findings if each.level is Level.BAD] == []
        warned = {each.check for each in seen.findings if each.level is not Level.OK}
        assert warned == {"idle timeout"}  # a few seconds prove nothing about 60 s
        assert "HTTP/2 is offered" in seen["http version"].message


async def test_a_silence_beyond_the_idle_timeout_is_cut(name: str, tmp_path: Path) -> None:
    """The timeout is there: a dead gateway shows. (And the test above can fail.)"""
    async with deployed(name, tmp_path, heartbeat="1h", idle=1) as found, subscribed(found) as subscriber:
        # It comes back each time; cut at once would not be silence.
        await follow(subscriber, lambda: len(subscriber.told("stream.open")) == 3)


async def test_streams_and_posts_pass_as_they_are(name: str, tmp_path: Path) -> None:
    """HTTP/2, the client's own address, no compression, the resume point, large posts, the module; and nothing else."""
    async with deployed(name, tmp_path) as found:
        url = f"{found.url}/events/orders"
        forged = {"X-Forwarded-For": "192.0.2.1", "Accept-Encoding": "gzip, br, zstd"}
        async with found.client.stream("GET", url, headers=forged) as answer:
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            assert "Content-Encoding" not in answer.headers
            assert await found.post("1") == 200
            parts = answer.aiter_raw()
            text = ""
            while '"payload":1}' not in text:
                text += (await anext(parts)).decode()
        await eventually(lambda: _clients(found.nodes))
        assert _clients(found.nodes) == [CLIENT]
        first = re.findall("^id: (.*)$", text, re.MULTILINE)[0]
        async with found.client.stream("GET", url, headers={"Last-Event-ID": first}) as answer:
            resumed = ""
            async for part in answer.aiter_raw():
                resumed += part.decode()
                if '"payload":1}' in resumed:
                    break
        assert '"resume":"complete"' in resumed
        large = json.dumps("x" * BODY_BYTES)
        assert await found.post(large, topic="large") == 200
        ack = await found.client.post(f"{found.url}/streams/{'0' * 24}/ack", content="made up")
        assert ack.json()["error"] == "unknown_nonce", "answers to heartbeats reach a gateway"
        module = await found.client.get(f"{found.url}/client.js", headers={"Accept-Encoding": "gzip"})
        assert (module.content, module.headers["Content-Encoding"]) == (CLIENT_SCRIPT, "gzip")
        named = await found.client.get(f"{found.url}/{module.headers['Content-Location']}")
        assert (named.content, named.headers["Cache-Control"]) == (CLIENT_SCRIPT, CACHE_FOREVER)
        for path in ("/", "/metrics", "/status", "/streams", "/eventsource", "/hooks", "/client"):
            assert (await found.client.get(found.url + path)).status_code == 404, path


async def test_restarts_and_kills_lose_nothing(name: str, tmp_path: Path) -> None:
    """A rolling restart under load, then a kill: every number once, in order, no browser gave up."""
    async with deployed(name, tmp_path, running=2) as found, subscribed(found) as subscriber:
        await follow(subscriber, lambda: bool(subscriber.told("stream.open")))
        sent = 0

        async def some_more(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                await found.publish(sent)
                sent += 1

        for node in found.nodes:
            node.signal(signal.SIGTERM)
            await some_more(15)
            assert await node.ended() == 0
            await node.start()
            await some_more(10)
        await found.nodes[0].kill()
        await some_more(10)
        await follow(subscriber, lambda: len(subscriber.payloads) >= sent)
        assert subscriber.payloads == list(range(sent))
        assert subscriber.told("stream.gap") == []
        assert subscriber.connects > 1


async def test_a_reload_of_the_proxy_drops_no_stream(name: str, tmp_path: Path) -> None:
    """An operator who changes its file does not send all clients away; and one that leaves is gone at once."""
    if RECIPES[name].reload is None:
        assert name == "envoy"  # another process takes its place, and the old one is left to drain
        return
    # No heartbeat: only the proxy can tell the gateway that a client left.
    async with deployed(name, tmp_path, heartbeat="1h") as found, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(curl(found, version)) for version in ("1.1", "2")]
        before = found.proxy.pids
        found.proxy.reload()
        if name != "caddy":  # which is one process, and has done it by now
            await eventually(lambda: found.proxy.pids - before)
        for number in range(10):  # while the old processes are told, and stop to listen
            await found.publish(number)
            await asyncio.sleep(0.05)
        for stream in streams:
            for number in range(10):
                await _until(stream, b'"payload":%d}' % number)
        await stack.aclose()
        await eventually(lambda: len(_lines(found.nodes, "stream_closed")) == len(streams))


@asynccontextmanager
async def curl(found: Deployed, version: str) -> AsyncIterator[asyncio.StreamReader]:
    """Open a stream with curl, which goes on after a GOAWAY as browsers do, and read its first event."""
    child = await asyncio.create_subprocess_exec(
        *(need("curl", "curl"), "-sN", f"--http{version}", "--cacert", str(found.authority.file)),
        f"{found.url}/events/orders",
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        await _until(child.stdout, b"stream.open")
        yield child.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def _until(stream: asyncio.StreamReader, word: bytes) -> None:
    """Read up to a line with a word. Raises AssertionError when the stream ends, TimeoutError."""
    async with safety_net():
        while word not in (line := await stream.readline()):
            assert line, "the stream ended"


async def test_without_a_gateway_browsers_are_told_to_come_back(name: str, tmp_path: Path) -> None:
    """A 502 would end every EventSource for good; senders of webhooks need just that."""
    async with deployed(name, tmp_path, running=0) as found, subscribed(found) as subscriber:
        page = {"Origin": "https://app.example.com"}
        answer = await found.client.get(f"{found.url}/events?channel=orders", headers=page)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Origin" in answer.headers["Vary"]
        assert re.fullmatch(r"retry: [2-8]\d\d\d\n", answer.text)
        alone = await found.client.get(f"{found.url}/events/orders")
        assert not alone.headers.get("Access-Control-Allow-Origin")
        assert await found.post("1") in (502, 503)
        await follow(subscriber, lambda: subscriber.connects > 1)
        await found.nodes[1].start()
        await follow(subscriber, lambda: bool(subscriber.told("stream.open")))
        await found.publish(7)
        await follow(subscriber, lambda: subscriber.payloads == [7])
