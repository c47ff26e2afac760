"""How a gateway comes: unready until its port accepts, nothing read before it has its ports, and off at any moment."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.process import free_port
from gateway.core.errors import StartupError
from gateway.server.daemon import Daemon
from tests.support.config import loads
from tests.support.deadline import safety_net
from tests.support.gateway import BASE, eventually, merged
from tests.support.node import Node
from tests.support.silent import Silent, silent_server

SOURCES: Mapping[str, Mapping[str, Any]] = {
    "redis-pubsub": {"type": "redis-pubsub", "url": "redis://{address}", "timeout": "1h"},
    "redis-stream": {"type": "redis-stream", "url": "redis://{address}", "timeout": "1h"},
    "kafka": {"type": "kafka", "brokers": "{address}", "timeout": "1h"},
}
"""Each type of source that connects to something."""

LOG = "the log"
ISSUER = "the issuer"
PEERS = [LOG, ISSUER, *SOURCES]
"""All that a start connects to."""

PATIENT = """
from gateway.server import daemon
from gateway.auth import authenticator, jwks
from gateway.broker.redis import broker as redis
daemon.SOURCE_START_SECONDS = authenticator.FIRST_FETCH_TIMEOUT_SECONDS = 3600.0
jwks.FETCH_TIMEOUT_SECONDS = redis.START_TIMEOUT_SECONDS = 3600.0
"""
"""A module for `site`: a start that waits for ever, in the parent and in its workers, so that no machine is too slow."""


def config(peer: str, address: str, folder: Path) -> dict[str, Any]:
    """Return a configuration in which one thing that a start connects to is at an address."""
    over: dict[str, Any] = {"broker": {"url": f"sqlite:///{folder}/log.db"}}
    if peer == LOG:
        over["broker"]["url"] = f"redis://{address}"
    elif peer == ISSUER:
        over["auth"] = {"jwt": {"algorithms": ["RS256"], "jwks_url": f"http://{address}/jwks"}}
        over["channels"] = {"private": {**BASE["channels"]["orders"], "access": "token"}}
    else:
        text = json.dumps(SOURCES[peer]).replace("{address}", address)
        over["sources"] = {"upstream": json.loads(text)}
        over["channels"] = {"fed": {"from": [{"source": "upstream", "topic": "fed"}], "access": "public"}}
    return deepcopy(dict(merged(BASE, over)))  # tests change it


def test_every_type_of_source_is_here() -> None:
    """A type that is added could read before the ports are known to be free."""
    schema = json.loads((Path(__file__).parents[2] / "config" / "schema.json").read_text())
    types = {name for name in schema["$defs"] if "type" in schema["$defs"][name].get("properties", {})}
    found = {schema["$defs"][name]["properties"]["type"].get("const") for name in types} - {None}
    assert found - {"webhook"} == set(SOURCES)


def accepts(port: int) -> bool:
    """Tell whether a port accepts connections."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


async def readiness(port: int) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/readyz") as answer,
    ):
        return answer.status, await answer.json()


@asynccontextmanager
async def starting(peer: str, folder: Path) -> AsyncIterator[tuple[Daemon, Silent, asyncio.Task[None]]]:
    """Give a gateway that waits for something slow, on ports that are known before it listens."""
    async with silent_server() as silent:
        whole = config(peer, silent.address, folder)
        ports = {name: f"127.0.0.1:{free_port()}" for name in ("listen", "admin")}
        daemon = Daemon(loads(json.dumps(merged(whole, {"server": ports})), environ={}))
        start = asyncio.create_task(daemon.start())
        try:
            yield daemon, silent, start
        finally:
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            await daemon.stop()


@pytest.mark.idle_clock
@pytest.mark.parametrize("peer", PEERS)
async def test_it_is_not_ready_before_its_port_accepts(peer: str, tmp_path: Path) -> None:
    """A balancer that believes /readyz sends clients into a port that is closed, for as long as the start takes."""
    async with starting(peer, tmp_path) as (daemon, silent, start):
        server, told = daemon.config.server, []
        async with safety_net():
            while not start.done():
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    status, body = await readiness(server.admin.port)
                    told.append(body["not_ready"])
                    assert status == 503 or accepts(server.listen.port)
                    assert ("starting" in body["not_ready"]) or accepts(server.listen.port)
                await asyncio.sleep(0.01)
        await start
        assert silent.connections
        # Nothing answers there while the log is waited for.
        assert peer == LOG or any("starting" in reasons for reasons in told)
        assert accepts(server.listen.port)
        _, body = await readiness(server.admin.port)
        assert "starting" not in body["not_ready"]


@pytest.mark.parametrize("key", ["listen", "admin"])
@pytest.mark.parametrize("peer", PEERS)
async def test_a_port_that_is_taken_is_found_before_anything_is_read(
    peer: str, key: str, tmp_path: Path
) -> None:
    """Another process's port would cost records: read, or taken over with a lease, by a gateway that then ends."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with silent_server() as silent:
            whole = config(peer, silent.address, tmp_path)
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            daemon = Daemon(loads(json.dumps(merged(whole, {"server": {key: address}})), environ={}))
            try:
                with pytest.raises(StartupError) as caught:
                    await daemon.start()
            finally:
                await daemon.stop()
            assert caught.value.message == (
                f"cannot listen on {address} (server.{key}): the address is in use by another process"
            )
            assert not silent.connections
    assert not (tmp_path / "log.db").exists(), "nobody has asked for a lease"


async def test_of_two_that_start_at_once_one_is_told_why(tmp_path: Path) -> None:
    """Both can bind the port before either listens; the traceback of the second one helped nobody."""
    server = {"listen": f"127.0.0.1:{free_port()}"}
    daemons = [Daemon(loads(json.dumps(merged(BASE, {"server": server})), environ={})) for _ in range(2)]
    try:
        for daemon in daemons:
            await daemon.public_listener.bind()
        await daemons[0].start()
        with pytest.raises(StartupError, match=r"\(server.listen\): the address is in use"):
            await daemons[1].start()
    finally:
        for daemon in daemons:
            await daemon.stop()


class Starting(Node):
    """A gateway process that may never listen."""

    async def begin(self) -> None:
        """Start it, and wait until a signal to it means something to it."""
        begun = asyncio.create_task(self.start())
        try:
            await eventually(lambda: self._process is not None)
            await eventually(lambda: _catches(self.pid, signal.SIGTERM))
        finally:
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


ONE_OR_TWO = [1, pytest.param(2, marks=pytest.mark.extended)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ONE_OR_TWO)
@pytest.mark.parametrize("peer", ["nobody", *PEERS])
async def test_a_signal_during_the_start_is_obeyed(
    peer: str,
    workers: int,
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was heard only when the slow thing had answered, or not at all; and then clients were let in after all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with silent_server() as silent:
            whole = config("kafka" if peer == "nobody" else peer, silent.address, tmp_path)
            if workers > 1:
                whole["server"]["workers"] = workers
            if peer != "nobody":
                (tmp_path / "sitecustomize.py").write_text(PATIENT)
                monkeypatch.setenv("PYTHONPATH", str(tmp_path))
            whole["timeouts"] = {"pre_drain": "10m", "drain": "10m"}  # nobody is there who could be sent here
            node = Starting(tmp_path, whole)
            try:
                await node.begin()
                if peer != "nobody":
                    await eventually(lambda: silent.connections)
                node.signal(number)
                async with safety_net():
                    assert await node.ended() == 0, node.log.read_text()
            finally:
                await node.kill()
        text = node.log.read_text()
        assert "listening" not in text
        assert "Traceback" not in text
        with pytest.raises(BlockingIOError):
            while b"READY" not in (heard := manager.recv(4096)):
                pass
            pytest.fail(f"the service manager was told {heard!r}")


@pytest.mark.idle_clock
async def test_a_signal_in_the_last_moment_keeps_the_port_closed(tmp_path: Path) -> None:
    """The service manager has been told that it ends; a port that opens now would only break connections."""
    async with starting(ISSUER, tmp_path) as (daemon, silent, start):
        await eventually(lambda: silent.connections)
        daemon.on_signal(signal.SIGTERM)
        await start
        assert daemon.shutdown.phase == "starting"
        assert not accepts(daemon.config.server.listen.port)


@pytest.mark.extended
@pytest.mark.parametrize("key", ["listen", "admin"])
async def test_workers_read_nothing_where_a_port_is_taken(key: str, tmp_path: Path) -> None:
    """As for one process: one line, exit 1, and no worker was started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with silent_server() as silent:
            whole = config("redis-stream", silent.address, tmp_path)
            whole["server"]["workers"] = 2
            node = Starting(tmp_path, whole)
            node.write(merged(node.config, {"server": {key: f"127.0.0.1:{taken.getsockname()[1]}"}}))
            try:
                with contextlib.suppress(AssertionError):
                    await node.start()
                assert await node.ended() == 1
            finally:
                await node.kill()
            (line,) = (line for line in node.log.read_text().splitlines() if not line.startswith("{"))
            assert f"(server.{key}): the address is in use" in line
            assert not silent.connections


@pytest.mark.extended
async def test_a_parent_is_not_ready_before_a_worker_accepts(tmp_path: Path) -> None:
    """It answers before the first of its workers is there."""
    async with silent_server() as silent:
        whole = config(ISSUER, silent.address, tmp_path)
        whole["server"]["workers"] = 2
        node = Starting(tmp_path, whole)
        try:
            await node.begin()
            status = 0
            async with safety_net():
                while status != 200:
                    with contextlib.suppress(aiohttp.ClientConnectorError):
                        status, body = await readiness(node.admin)
                        assert accepts(node.port) or body["not_ready"] == ["starting"]
                    await asyncio.sleep(0.01)
            assert accepts(node.port)
        finally:
            await node.kill()
