"""How a gateway goes: announced, spread, answered, and in time."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.model.config import TimeoutsConfig
from gateway.server.shutdown import Shutdown
from gateway.server.systemd import SystemdNotifier
from tests.support.deadline import safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import eventually, gateway_running
from tests.support.node import Node

LONG = "10m"
"""A duration that no test waits for."""

ONE_OR_TWO = [1, pytest.param(2, marks=pytest.mark.extended)]
"""Workers. Two of them in `make test` too: test_the_phases_follow_each_other."""


def config(folder: Path, pre_drain: str, workers: int, drain: str = "1s") -> dict[str, Any]:
    return {
        "server": {"workers": workers} if workers > 1 else {},
        "broker": {"url": f"sqlite:///{folder}/log.db"},
        "timeouts": {"pre_drain": pre_drain, "drain": drain},
        "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
        "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
    }


@asynccontextmanager
async def node_running(folder: Path, pre_drain: str, workers: int, drain: str = "1s") -> AsyncIterator[Node]:
    node = Node(folder, config(folder, pre_drain, workers, drain))
    try:
        await node.start()
        yield node
    finally:
        await node.kill()


async def admin(node: Node, path: str) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{node.admin}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.json()


async def is_unready(node: Node) -> bool:
    status, details = await admin(node, "/readyz")
    return status == 503 and details["not_ready"] == ["draining"]


def phases(node: Node) -> list[str]:
    """Return the phases of a drain that the log tells, each once."""
    return list(dict.fromkeys(line["phase"] for line in node.lines() if line["event"] == "draining"))


@pytest.mark.parametrize("workers", ONE_OR_TWO)
async def test_all_is_served_while_balancers_look_elsewhere(tmp_path: Path, workers: int) -> None:
    """Unready at once, and whoever still comes is a client like any other; the second signal ends it."""
    async with node_running(tmp_path, LONG, workers) as node:
        old = await Stream.open(node.port, "/events/orders")
        node.signal(signal.SIGTERM)
        await eventually(lambda: is_unready(node))
        _, status = await admin(node, "/status")
        # The parent says so at once; its workers hear of it a moment later.
        await eventually(lambda: phases(node) == ["pre_drain"])
        _, status = await admin(node, "/status")
        assert status["phase"] == "pre_drain"
        assert {each["phase"] for each in status.get("workers", [])} <= {
            "pre_drain",
            None,
        }  # None: no answer yet
        assert (await admin(node, "/healthz"))[0] == 200
        new = await Stream.open(node.port, "/events/orders")
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{node.port}/hooks/hooks?topic=orders", data="7") as answer,
        ):
            assert answer.status == 200
        for stream in (old, new):
            assert (await stream.until("message")).json["payload"] == 7
        node.signal(signal.SIGTERM)
        assert await node.ended() == 1
        for stream in (old, new):
            stream.close()


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_phases_follow_each_other(tmp_path: Path, workers: int) -> None:
    """Unready, then streams closed, then gone, with exit 0; the log says what it was doing when."""
    async with node_running(tmp_path, "500ms", workers) as node:
        stream = await Stream.open(node.port, "/events/orders")
        node.signal(signal.SIGTERM)
        assert (await stream.until("stream.close")).json == {"reason": "draining", "reconnect": True}
        assert await node.ended() == 0
        assert phases(node) == ["pre_drain", "streams", "requests", "sources"]


@pytest.mark.parametrize("workers", ONE_OR_TWO)
async def test_whoever_sits_at_the_terminal_does_not_wait(tmp_path: Path, workers: int) -> None:
    """Ctrl-C is no deployment: there is no load balancer to wait for, and a few streams are no herd."""
    async with node_running(tmp_path, LONG, workers, drain="1h") as node:
        streams = [await Stream.open(node.port, "/events/orders") for _ in range(5)]
        node.signal(signal.SIGINT)
        for stream in streams:
            await stream.until("stream.close")
            await stream.rest()
        assert await node.ended() == 0
        assert phases(node) == ["streams", "requests", "sources"]


BROKERS = ["memory", "sqlite"]


@asynccontextmanager
async def half_posted(folder: Path, broker: str, length: int, request: str) -> AsyncIterator[Any]:
    """Give a gateway that has half of a post, and the connection that it came on."""
    url = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/log.db"}[broker]
    over = {"broker": {"url": url}, "timeouts": {"request": request}}
    async with gateway_running(over) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = f"POST /hooks/hooks?topic=orders HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode() + b"12")
        await eventually(lambda: gateway.daemon.body_reader._reserved_bytes > 0)
        try:
            yield gateway, reader, writer
        finally:
            writer.transport.abort()


@pytest.mark.idle_clock
@pytest.mark.parametrize("broker", BROKERS)
async def test_half_a_post_is_told_to_come_again(tmp_path: Path, broker: str) -> None:
    """408 says that the sender was at fault, and some give up at it; its post was only late for this node."""
    async with half_posted(tmp_path, broker, 5, "10s") as (gateway, reader, _):
        stopping = asyncio.create_task(gateway.daemon.stop())
        async with safety_net():
            answer = await reader.read(65536)
            assert b" 503 " in answer.split(b"\r\n")[0]
            assert b"\r\nRetry-After: " in answer
            assert b"\r\nConnection: close\r\n" in answer
            await stopping


async def test_a_post_that_comes_in_time_is_taken(tmp_path: Path) -> None:
    """Webhooks in flight are finished: the sender gets 200, and it is in the log."""
    async with half_posted(tmp_path, "sqlite", 4, LONG) as (gateway, reader, writer):
        stopping = asyncio.create_task(gateway.daemon.stop())
        await eventually(lambda: gateway.daemon.shutdown.phase == "requests")
        writer.write(b"34")
        async with safety_net():
            answer = await reader.read(65536)
            assert b" 200 " in answer.split(b"\r\n")[0]
            assert b"\r\nConnection: close\r\n" in answer, "or a proxy sends its next post into the end"
            await stopping


POST = b"POST /hooks/hooks?topic=orders HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1"


async def is_taken(connections: list[socket.socket]) -> None:
    """Read the answer to a post from each connection: it was taken, and is the last one."""
    for connection in connections:
        reader, writer = await asyncio.open_connection(sock=connection)
        async with safety_net():
            answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.both_loops
async def test_a_post_on_a_connection_in_the_queue_is_taken() -> None:
    """A proxy that was connected when the port closed got a reset for its post, and may not send it twice."""
    async with gateway_running() as gateway:
        # While this does not wait, the kernel connects them, and the gateway hears of none.
        connections = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(5)]
        for connection in connections:
            connection.sendall(POST)
        stopping = asyncio.create_task(gateway.daemon.stop())
        await is_taken(connections)
        await stopping


@pytest.mark.idle_clock
async def test_a_post_just_behind_its_connection_is_taken() -> None:
    """The same, where the post is still on its way when the connection is accepted."""
    async with gateway_running() as gateway:
        connections = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(5)]
        stopping = asyncio.create_task(gateway.daemon.stop())
        await eventually(lambda: len(gateway.daemon.public_listener._fast_path_deadlines) == 5)
        assert gateway.daemon.shutdown.phase == "streams"
        for connection in connections:
            connection.sendall(POST)
        await is_taken(connections)
        await stopping


async def never() -> None:
    await asyncio.Event().wait()


async def test_an_end_that_hangs_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not let go, the process is gone before somebody kills it."""
    shutdown = Shutdown(
        TimeoutsConfig.model_validate({"pre_drain": "0s", "drain": "100ms", "request": "100ms"}),
        SystemdNotifier({}),
    )
    shutdown.max_seconds = 0.2
    shutdown.request()
    assert await shutdown.run(never, lambda: 3) is False


async def test_asking_twice_at_once_ends_the_announcement() -> None:
    """SIGTERM to a worker, then Ctrl-C to its parent: nobody waits for balancers any more."""
    shutdown = Shutdown(
        TimeoutsConfig.model_validate({"pre_drain": "10m", "drain": "100ms", "request": "100ms"}),
        SystemdNotifier({}),
    )
    shutdown.request()
    ended = asyncio.Event()

    async def stop() -> None:
        ended.set()

    ending = asyncio.create_task(shutdown.run(stop, lambda: 0))
    await eventually(lambda: shutdown.phase == "pre_drain")
    shutdown.request(skip_pre_drain=True)
    async with safety_net():
        assert await ending
    assert ended.is_set()


@pytest.mark.parametrize("workers", ONE_OR_TWO)
async def test_the_service_manager_hears_of_it(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Type=notify: ready once all workers listen, alive while they answer, and stopping with its deadline."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        received: list[str] = []

        def listen() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    received.extend(manager.recv(4096).decode().split("\n"))

        # All the time: the kernel keeps few of them, and the gateway does not wait for room.
        loop = asyncio.get_running_loop()
        loop.add_reader(manager, listen)
        try:
            async with node_running(tmp_path, "0s", workers) as node:
                await eventually(lambda: "READY=1" in received)
                assert received[0] == "READY=1"
                await eventually(lambda: received.count("WATCHDOG=1") > 2)
                assert received.count("READY=1") == 1
                assert "STOPPING=1" not in received
                node.signal(signal.SIGTERM)
                assert await node.ended() == 0
            listen()
        finally:
            loop.remove_reader(manager)
        assert "STOPPING=1" in received
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in received)
