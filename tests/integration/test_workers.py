"""Several workers on one port: spread, added up, killed, frozen, ended."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.observability.metrics import Metrics
from gateway.server.workers import parent as parent_module
from gateway.server.workers.parent import Parent
from tests.support.config import loads
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import eventually
from tests.support.node import ROOT, Node
from tests.support.redis import RedisServer

STREAMS = 80
RUN = f"import sys; sys.path.append({str(ROOT)!r}); from gateway.cli.main import main; sys.exit(main())"
"""As the installed command does it: without the working folder."""


def config(folder: Path, url: str = "", workers: int = 2) -> dict[str, Any]:
    return {
        "server": {"workers": workers},
        "broker": {"url": url or f"sqlite:///{folder}/log.db"},
        "timeouts": {"pre_drain": "0s", "drain": "2s", "retry": "1s"},
        "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
        "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
    }


class Group(Node):
    """A gateway with several workers, and what a test asks it."""

    async def get(self, path: str) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.admin}{path}") as answer,
        ):
            is_json = answer.content_type == "application/json"
            return answer.status, await answer.json() if is_json else await answer.text()

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return float(lines.get(f"sse_gateway_{name}", 0))

    async def shows(self, name: str, value: float) -> None:
        """Wait until a metric has a value: a worker that does not answer at once is left out of a scrape."""

        async def is_shown() -> bool:
            return await self.metric(name) == value

        await eventually(is_shown)

    async def workers(self) -> list[dict[str, Any]]:
        """Return what each worker says of itself, once all do."""
        told: list[dict[str, Any]] = []

        async def have_answered() -> bool:
            told[:] = (await self.get("/status"))[1]["workers"]
            return all(worker["streams"] is not None for worker in told)

        await eventually(have_answered)
        return told

    async def post(self, body: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{self.port}/hooks/hooks?topic=orders", data=body) as answer,
        ):
            assert answer.status == 200, await answer.text()

    async def open(self, count: int, headers: dict[str, str] | None = None) -> list[Stream]:
        streams = [await Stream.open(self.port, "/events/orders", headers) for _ in range(count)]
        for stream in streams:
            assert (await stream.next()).type == "stream.open"
        return streams


@asynccontextmanager
async def group(folder: Path, config: dict[str, Any]) -> AsyncIterator[Group]:
    node = Group(folder, config)
    try:
        await node.start()
        yield node
    finally:
        await node.kill()


async def test_the_token_is_the_parents(tmp_path: Path) -> None:
    """It asks strangers for it, and its workers without it: they answer it alone, on files of their own."""
    whole = config(tmp_path)
    whole["server"]["admin_token"] = token = "t0ken-" * 4
    async with group(tmp_path, whole) as gateway:
        assert (await gateway.get("/status"))[0] == 401

        async def is_ready() -> bool:
            return await gateway.get("/readyz") == (200, {"ready": True})

        await eventually(is_ready)
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"http://127.0.0.1:{gateway.admin}/readyz") as answer,
        ):
            assert set((await answer.json())["workers"]) == {"0", "1"}


@pytest.mark.extended
@pytest.mark.parametrize("log", ["sqlite", "redis"])
async def test_streams_are_spread_and_figures_added_up(tmp_path: Path, redis: RedisServer, log: str) -> None:
    """Each worker takes its share, every stream gets every event, and one scrape tells of all."""
    url = redis.url if log == "redis" else ""
    async with group(tmp_path, config(tmp_path, url)) as gateway:
        streams = await gateway.open(STREAMS)
        await gateway.post('{"n":1}')
        for stream in streams:
            assert (await stream.next()).json["payload"] == {"n": 1}
        shares = [worker["streams"] for worker in await gateway.workers()]
        assert sum(shares) == STREAMS
        assert min(shares) > STREAMS / 5, "the kernel spreads by hash: far from even means that it does not"
        await gateway.shows("active_connections", STREAMS)
        await gateway.shows("workers", 2)
        await gateway.shows('events_delivered_total{channel="orders"}', STREAMS)
        await gateway.shows('events_published_total{channel="orders"}', 1)
        status, body = await gateway.get("/readyz")
        assert (status, body["ready"], set(body["workers"])) == (200, True, {"0", "1"})
        for stream in streams:
            stream.close()
        await gateway.stop()
        assert [line["event"] for line in gateway.lines()].count("stopped") == 3


async def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    """Its clients resume at the others; counters never fall, and no stream of it is counted any more."""
    async with group(tmp_path, config(tmp_path)) as gateway:
        streams = await gateway.open(STREAMS)
        await gateway.post("1")
        for stream in streams:
            await stream.next()
        await gateway.shows('events_delivered_total{channel="orders"}', STREAMS)
        victim = (await gateway.workers())[0]
        os.kill(victim["pid"], signal.SIGKILL)
        await eventually(lambda: _restarted(gateway, 0))
        after = await gateway.workers()
        assert after[0]["pid"] != victim["pid"]
        await gateway.shows("active_connections", STREAMS - victim["streams"])
        await gateway.shows('events_delivered_total{channel="orders"}', STREAMS)
        await gateway.shows("worker_restarts_total", 1)
        (died,) = (line for line in gateway.lines() if line["event"] == "worker_died")
        assert (died["worker"], died["status"]) == (0, "SIGKILL")
        await gateway.post("2")
        last = [message.id for message in streams[0].messages if message.id][-1]
        for stream in await gateway.open(8, {"Last-Event-ID": last}):
            assert (await stream.next()).json["payload"] == 2
            stream.close()
        await eventually(lambda: _is_ready(gateway))
        for stream in streams:
            stream.close()


async def _is_ready(gateway: Group) -> bool:
    return (await gateway.get("/readyz"))[0] == 200


async def _restarted(gateway: Group, number: int) -> bool:
    worker = (await gateway.workers())[number]
    return bool(worker["restarts"] == 1 and worker["ready"])


@pytest.mark.extended
async def test_one_worker_can_be_drained_by_hand(tmp_path: Path) -> None:
    """SIGTERM to a worker ends its streams politely, and it comes back."""
    # The last fifth of `drain` is for the last bytes: not to be too short on any machine.
    timeouts = {"pre_drain": "0s", "drain": "20s"}
    async with group(tmp_path, config(tmp_path) | {"timeouts": timeouts}) as gateway:
        streams = await gateway.open(10)
        victim = (await gateway.workers())[1]
        os.kill(victim["pid"], signal.SIGTERM)
        await eventually(lambda: _restarted(gateway, 1))
        closed = [line for line in gateway.lines() if line["event"] == "stream_closed"]
        assert [line["reason"] for line in closed] == ["draining"] * victim["streams"]
        for stream in streams:
            stream.close()


@pytest.mark.extended
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_whole_group_drains_once(tmp_path: Path, number: signal.Signals) -> None:
    """Terminals and service managers signal everybody: that is one wish, not two."""
    async with group(tmp_path, config(tmp_path)) as gateway:
        (stream,) = await gateway.open(1)
        workers = await gateway.workers()
        for worker in workers:
            os.kill(worker["pid"], number)
        gateway.signal(number)
        assert (await stream.until("stream.close")).json["reason"] == "draining"
        assert await gateway.ended() == 0
        assert "shutdown_forced" not in [line["event"] for line in gateway.lines()]
        await eventually(lambda: not any(_lives(worker["pid"]) for worker in workers))


@pytest.mark.extended
async def test_a_second_signal_ends_all_of_them_now(tmp_path: Path) -> None:
    """Impatient operators get what they want."""
    async with group(
        tmp_path, config(tmp_path) | {"timeouts": {"pre_drain": "0s", "drain": "60s"}}
    ) as gateway:
        streams = await gateway.open(20)
        gateway.signal(signal.SIGTERM)
        await eventually(lambda: [line["event"] for line in gateway.lines()].count("draining") >= 2)
        gateway.signal(signal.SIGTERM)
        async with safety_net():
            assert await gateway.ended() == 1
        for stream in streams:
            stream.close()


@pytest.mark.extended
async def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no processes behind that hold the port."""
    async with group(tmp_path, config(tmp_path)) as gateway:
        (stream,) = await gateway.open(1)
        workers = await gateway.workers()
        gateway.signal(signal.SIGKILL)
        assert (await stream.until("stream.close")).json["reason"] == "draining"
        await eventually(lambda: not any(_lives(worker["pid"]) for worker in workers))


@pytest.mark.extended
async def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen is worse than dead: the kernel goes on giving it connections."""
    monkeypatch.setattr(parent_module, "LIVENESS_CHECK_SECONDS", 0.2)
    monkeypatch.setattr(
        parent_module, "HANG_SECONDS", 10.0
    )  # the other one may be slow, and must not be killed
    whole = config(tmp_path)
    whole["server"] |= {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}
    whole["logging"] = {"level": "error"}
    parent = Parent(loads(json.dumps(whole), environ={}), 2, Metrics())
    running = asyncio.create_task(parent.run())
    try:
        await eventually(
            lambda: len(parent._workers) == 2 and all(w.is_listening for w in parent._workers.values())
        )
        frozen = parent._workers[1].pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)

        async def is_told() -> bool:
            return not (await parent.liveness())[0]

        await eventually(is_told)
        await eventually(lambda: parent._restarts[1] == 1 and parent._workers[1].is_listening)
        assert parent._workers[1].pid != frozen

        async def is_alive() -> bool:
            return (await parent.liveness())[0]

        await eventually(is_alive)
    finally:
        parent.on_signal(signal.SIGTERM)
        assert await running == 0


def command(
    folder: Path, whole: dict[str, Any], port: int, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    file = folder / f"second-{whole['server']['workers']}.yaml"
    whole["server"] |= {"listen": f"127.0.0.1:{port}", "admin": "127.0.0.1:0"}
    file.write_text(json.dumps(whole))
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN, "run", "--config", str(file)],
        capture_output=True, text=True, timeout=SAFETY_SECONDS, check=False, cwd=cwd,
    )  # fmt: skip


@pytest.mark.extended
@pytest.mark.parametrize("whole", [True, False], ids=["group", "parent"])
async def test_a_signal_during_the_start_ends_it(tmp_path: Path, whole: bool) -> None:
    """A service manager may think better of it at any moment: exit 0, and nothing is started after it."""
    node = Group(tmp_path, config(tmp_path))
    starting = asyncio.create_task(node.start())
    try:
        await eventually(lambda: node.is_running)
        assert node._process is not None
        await eventually(lambda: children(node._process.pid))  # type: ignore[union-attr]
        for pid in children(node._process.pid) if whole else []:
            os.kill(pid, signal.SIGTERM)
        node.signal(signal.SIGTERM)
        async with safety_net():
            assert await node.ended() == 0, node.log.read_text()
        assert "workers_listening" not in node.log.read_text()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await node.kill()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


@pytest.mark.extended
async def test_what_lies_in_the_working_folder_is_not_run(tmp_path: Path) -> None:
    """Workers hold secrets; a file that somebody left there must not get them."""
    (tmp_path / "uvloop.py").write_text("raise SystemExit('the folder was searched')")
    whole = config(tmp_path, "sqlite:////proc/nowhere/log.db")
    ended = await asyncio.to_thread(command, tmp_path, whole, 0, cwd=tmp_path)
    assert "the folder was searched" not in ended.stderr
    assert "/proc/nowhere/log.db" in ended.stderr


@pytest.mark.extended
async def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """SO_REUSEPORT would let a second gateway share the port of the first one without a word."""
    async with group(tmp_path, config(tmp_path)) as gateway:
        both = (
            asyncio.to_thread(command, tmp_path, config(tmp_path, workers=workers), gateway.port)
            for workers in (1, 2)
        )
        for second in await asyncio.gather(*both):
            assert second.returncode == 1
            assert (
                f"cannot listen on 127.0.0.1:{gateway.port} (server.listen): the address is in use"
                in second.stderr
            )


async def test_a_worker_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    """One line says why, the exit status is 1, and nothing is tried for ever."""
    whole = config(tmp_path, "sqlite:////proc/nowhere/log.db")
    ended = await asyncio.to_thread(command, tmp_path, whole, 0)
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if not line.startswith("{"))
    assert "/proc/nowhere/log.db" in line


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
