"""Reloads of a real process: by signal, request and file, all or nothing, the same on all workers."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.server import reload as reload_module
from gateway.server.daemon import Daemon
from gateway.server.reload import ConfigFile
from tests.integration.test_workers import Group, children, config
from tests.support.eventsource import Stream
from tests.support.gateway import BASE, eventually
from tests.support.node import Node, kill_all

STREAMS = 10_000
AT_ONCE = 200


def whole(folder: Path, workers: int = 1) -> dict[str, Any]:
    out = config(folder, workers=workers)
    if workers == 1:
        del out["server"]
    route = out["channels"]["orders"]
    stock = {**route, "from": [{"source": "hooks", "topic": "stock"}]}
    return {**out, "channels": {"orders": route, "stock": stock}}


def with_format(node: Node, channel: str, format: str) -> dict[str, Any]:
    channels = node.config["channels"]
    return {**node.config, "channels": {**channels, channel: {**channels[channel], "format": format}}}


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.extended)], ids=["one process", "two workers"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Group]:
    group = Group(tmp_path, whole(tmp_path, request.param))
    try:
        await group.start()
        yield group
    finally:
        await kill_all([group])


async def reload(node: Group) -> tuple[int, Any]:
    """Ask for a reload, and return status and answer."""
    url = f"http://127.0.0.1:{node.admin}/reload"
    async with aiohttp.ClientSession() as session, session.post(url) as answer:
        return answer.status, await answer.json()


async def last(node: Group) -> Any:
    """Return what ``/status`` says of the last reload."""
    return (await node.get("/status"))[1]["config"]["last_reload"]


async def result(node: Group) -> str | None:
    told = await last(node)
    return None if told is None else str(told["result"])


async def opened(node: Group, path: str) -> Stream:
    stream = await Stream.open(node.port, path)
    assert stream.status == 200 and (await stream.next()).type == "stream.open"
    return stream


async def test_a_request_reloads(node: Group) -> None:
    """The answer says what changed and what it cost; a second one has nothing to do."""
    orders = [await opened(node, "/events/orders") for _ in range(8)]
    stock = await opened(node, "/events/stock")
    node.write(with_format(node, "orders", "data"))
    status, told = await reload(node)
    changes = ["channels.orders.format: envelope to data: its streams close, and may come back at once"]
    assert status == 200
    if told["result"] != "unchanged":  # else the watch was quicker
        assert (told["result"], told["ended"], told["changes"]) == ("ok", 8, changes)
    await eventually(lambda: "config_reloaded" in node.log.read_text())
    (done,) = [line for line in node.lines() if line["event"] == "config_reloaded"]
    assert (done["streams_ended"], done["changes"]) == (8, changes)
    for stream in orders:
        await stream.rest()
        assert stream.messages[-1].json["reason"] == "reconfigured"
    await node.post("1")
    again = await Stream.open(node.port, "/events/orders?last=1")
    assert [(await again.next()).type for _ in range(2)] == ["stream.open", "message"]
    assert again.messages[-1].data == "1"
    assert (await reload(node))[1]["result"] == "unchanged"
    assert stock.messages[-1].type == "stream.open" and not stock.ended
    await node.shows('config_reloads_total{result="ok"}', 1)
    await node.shows("config_last_reload_successful", 1)


async def test_a_bad_file_changes_nothing(node: Group) -> None:
    """Log, status and metric name file, line and column; what is served stays, and the mend is taken up."""
    orders = await opened(node, "/events/orders")
    bad = json.dumps(with_format(node, "orders", "datum"), indent=1)
    spare = node.file.with_suffix(".bad")
    spare.write_text(bad)
    spare.replace(node.file)
    await eventually(lambda: _is(node, "failed"))
    line = next(n for n, text in enumerate(bad.splitlines(), 1) if '"datum"' in text)
    column = bad.splitlines()[line - 1].index('"datum"') + 1
    message = "must be 'envelope', 'data' or 'message'; did you mean 'data'?"
    told = (await last(node))["errors"]
    assert told == [{"line": line, "column": column, "path": "channels.orders.format", "message": message}]
    await eventually(lambda: "config_reload_failed" in node.log.read_text())
    (logged,) = [each for each in node.lines() if each["event"] == "config_reload_failed"]
    assert logged["mistakes"] == told
    assert f"{node.file}:{line}:{column}: channels.orders.format: {message}" in logged["error"]
    await node.shows("config_last_reload_successful", 0)
    status, answer = await reload(node)
    assert (status, answer["errors"]) == (422, told)
    await node.post("1")
    assert (await orders.next()).json["payload"] == 1
    node.write(node.config)
    await eventually(lambda: _is(node, "unchanged"))
    await node.shows("config_last_reload_successful", 1)


async def _is(node: Group, wanted: str) -> bool:
    return await result(node) == wanted


NEED_A_RESTART: list[tuple[str, dict[str, Any], str]] = [
    ("server", {"listen": "127.0.0.1:1"}, "server.listen"),
    ("server", {"workers": 3}, "server.workers"),
    ("broker", {"url": "memory://"}, "broker.url"),
    ("logging", {"level": "debug"}, "logging.level"),
]
"""Section, what changes in it, and the path that is told."""


async def test_what_needs_a_restart_says_so(tmp_path: Path) -> None:
    """And nothing else of such a file is taken: half of a change is no change that anybody asked for."""
    node = Group(tmp_path, whole(tmp_path))
    found = []
    try:
        await node.start()
        changed = with_format(node, "orders", "data")
        for section, value, path in NEED_A_RESTART:
            node.write({**changed, section: {**changed[section], **value}})
            node.signal(signal.SIGHUP)
            await eventually(lambda: _refuses(node, path))  # noqa: B023 -- called at once
            (error,) = (await last(node))["errors"]
            found.append((path, "needs a restart" in error["message"]))
            await node.post("1")
            stream = await Stream.open(node.port, "/events/orders?last=1")
            await stream.next()
            assert (await stream.next()).json["payload"] == 1, path  # the envelope of before
            stream.close()
    finally:
        await kill_all([node])
    assert found == [(path, True) for _, _, path in NEED_A_RESTART]


async def _refuses(node: Group, path: str) -> bool:
    """Tell whether the last reload failed at a path."""
    told = await last(node)
    return told is not None and [error["path"] for error in told["errors"]] == [path]


async def test_a_folder_that_is_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes swaps a symlink to the folder of a ConfigMap; a Secret beside it is looked at too."""
    monkeypatch.setattr(reload_module, "POLL_SECONDS", 0.05)
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def swap(name: str, secret: str, settings: dict[str, Any]) -> None:
        data = mounted / name
        data.mkdir()
        (data / "gateway.yaml").write_text(json.dumps(settings))
        (data / "token").write_text(secret)
        (mounted / "..new").symlink_to(name)
        (mounted / "..new").replace(mounted / "..data")

    verify = {"verify": {"bearer": ["file:token"]}}
    settings = {**BASE, "sources": {"hooks": {"type": "webhook", **verify}}}
    swap("..1", "a" * 20, settings)
    for name in ("gateway.yaml", "token"):
        (mounted / name).symlink_to(f"..data/{name}")
    file = ConfigFile(mounted / "gateway.yaml")
    daemon = Daemon(file.load(), file=file)
    assert daemon.reloader is not None

    def result() -> Any:
        return (daemon.reloader.config_status()["last_reload"] or {}).get("result")  # type: ignore[union-attr]

    try:
        await daemon.start()
        daemon.reloader.start()
        orders = await Stream.open(daemon.public_listener.port, "/events/orders")
        assert (await orders.next()).type == "stream.open"
        swap("..2", "b" * 20, settings)
        await eventually(lambda: result() == "ok")
        assert daemon.reloader.config_status()["last_reload"]["changes"] == [
            "sources.hooks.verify.bearer: changed"
        ]
        assert await _posted(daemon.public_listener.port, "a" * 20) == 401
        assert await _posted(daemon.public_listener.port, "b" * 20) == 200
        swap("..3", "b" * 20, {**settings, "channels": {}})
        await eventually(lambda: result() == "failed")
        assert (await orders.next()).json["payload"] == 1
        orders.close()
    finally:
        await daemon.stop()


async def _posted(port: int, token: str) -> int:
    url = f"http://127.0.0.1:{port}/hooks/hooks?topic=orders"
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.post(url, data="1", headers=headers) as answer:
        return answer.status


@pytest.mark.extended
async def test_a_worker_that_cannot_follow_is_started_again(tmp_path: Path) -> None:
    """After a reload no worker may serve the old configuration, whatever became of it meanwhile."""
    node = Group(tmp_path, whole(tmp_path, 2))
    try:
        await node.start()
        (first, second) = (worker["pid"] for worker in await node.workers())
        os.kill(second, signal.SIGKILL)
        node.write(with_format(node, "orders", "data"))
        node.signal(signal.SIGHUP)
        await eventually(lambda: _is(node, "ok"))

        async def both() -> bool:
            workers = await node.workers()
            return all(worker["ready"] for worker in workers) and workers[1]["pid"] != second

        await eventually(both)
        await node.post("1")
        for _ in range(20):  # some of them at either worker
            stream = await Stream.open(node.port, "/events/orders?last=1")
            await stream.next()
            assert (await stream.next()).data == "1"
            stream.close()
        assert (await node.workers())[0]["pid"] == first
    finally:
        await kill_all([node])


@pytest.mark.extended
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_signal_during_the_drain_cuts_nothing_short(tmp_path: Path, workers: int) -> None:
    """SIGHUP's own meaning is death: a tool that reloads what is just draining must not cut its streams."""
    # The last fifth of `drain` is for the last bytes: not to be too short on any machine.
    node = Group(tmp_path, {**whole(tmp_path, workers), "timeouts": {"pre_drain": "1s", "drain": "10s"}})
    try:
        await node.start()
        streams = [await opened(node, "/events/orders") for _ in range(20)]
        node.signal(signal.SIGTERM)
        await eventually(lambda: "draining" in node.log.read_text())
        for _ in range(10):
            node.signal(signal.SIGHUP)
            await asyncio.sleep(0.02)
        assert await node.ended() == 0, node.log.read_text()
        assert "config_reload" not in node.log.read_text()
        for stream in streams:
            await stream.rest()
            assert stream.messages[-1].json["reason"] == "draining"
    finally:
        await kill_all([node])


async def test_a_reload_during_the_start_waits_for_it(tmp_path: Path) -> None:
    """It must not end the gateway, nor a worker that is only just starting, and the file counts that is there."""
    node = Group(tmp_path, whole(tmp_path, 2))
    starting = asyncio.create_task(node.start())
    try:
        await eventually(lambda: node.is_running and children(node.pid))
        node.write(with_format(node, "orders", "data"))
        for _ in range(50):  # a storm is one reload or two
            node.signal(signal.SIGHUP)
        status, told = await reload(node)
        await starting
        assert status == 200 and told["result"] in ("ok", "unchanged"), told
        await eventually(lambda: _is_settled(node))
        assert sum("config" in line["event"] for line in node.lines()) <= 5
        assert [worker["restarts"] for worker in await node.workers()] == [0, 0]
        await node.post("1")
        for _ in range(8):
            stream = await opened(node, "/events/orders?last=1")
            assert (await stream.next()).data == "1"
            stream.close()
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await kill_all([node])


async def _is_settled(node: Group) -> bool:
    return await result(node) == "unchanged"


@pytest.mark.extended
async def test_ten_thousand_streams(tmp_path: Path) -> None:
    """Those of the channel that changed see it, every other one of 10,000 gets the next event where it is."""
    node = Group(tmp_path, {**whole(tmp_path), "limits": {"connections_per_address": None}})
    try:
        await node.start()
        stock: list[Stream] = []
        while len(stock) < STREAMS - 100:
            more = (opened(node, "/events/stock") for _ in range(AT_ONCE))
            stock += await asyncio.gather(*more)
        orders = [await opened(node, "/events/orders") for _ in range(100)]
        node.file.write_text("channels: {orders: {form: data}}")
        await eventually(lambda: _is(node, "failed"))
        node.write(with_format(node, "orders", "data"))
        await eventually(lambda: _is(node, "ok"))
        assert (await last(node))["ended"] == len(orders)
        url = f"http://127.0.0.1:{node.port}/hooks/hooks?topic=stock"
        async with aiohttp.ClientSession() as session, session.post(url, data="1") as answer:
            assert answer.status == 200
        for stream in stock:
            assert (await stream.next()).json["payload"] == 1
            assert [each.type for each in stream.messages] == ["stream.open", "message"]
            stream.close()
        for stream in orders:
            await stream.rest()
            assert [each.type for each in stream.messages] == ["stream.open", "stream.close"]
    finally:
        await kill_all([node])
