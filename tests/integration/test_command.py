"""The command as a process: start, signals, mistakes; what an operator sees."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.process import free_port
from gateway.cli.main import main
from tests.config.test_load import BROKEN
from tests.support.deadline import SAFETY_SECONDS, safety_net
from tests.support.eventsource import Stream
from tests.support.gateway import eventually
from tests.support.redis import RedisServer

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "SSE_GATEWAY_CONFIG")}


def command(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=SAFETY_SECONDS, check=False,
        env={**CLEAN, "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip


class Running:
    """A gateway process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, admin: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.admin = admin
        self._log = log

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]


@asynccontextmanager
async def process(
    tmp_path: Path, more: str = "", *, before: str = "", **environ: str
) -> AsyncIterator[Running]:
    port, admin, config, log = free_port(), free_port(), tmp_path / "g.yaml", tmp_path / "log"
    config.write_text(
        f"server: {{listen: '127.0.0.1:{port}', admin: '127.0.0.1:{admin}'}}\n"
        "sources:\n  hooks: {type: webhook, verify: {none: true}}\n  app: {type: redis-pubsub, url: '${REDIS_URL:-}'}\n"
        "channels:\n  orders:\n    access: public\n    from:\n"
        "    - {source: hooks, topic: orders}\n    - {source: app, topic: orders.*}\n" + more
    )
    with log.open("w") as file:
        command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
        child = await asyncio.create_subprocess_exec(
            "sh", "-c", f"{before} exec {shlex.join(command)}",
            stdout=file, stderr=file, cwd=ROOT, env={**CLEAN, **environ},
        )  # fmt: skip
    try:
        async with safety_net():
            while "listening" not in log.read_text():
                assert child.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield Running(child, port, admin, log)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def test_sigterm_ends_streams_politely_and_exits_0(tmp_path: Path) -> None:
    """Unready, no new streams, each stream told and ended, exit 0: an hour of drain is not for a single stream."""
    async with process(tmp_path, "timeouts: {pre_drain: 0s, drain: 1h}") as gateway:
        stream = await Stream.open(gateway.port, "/events/orders")
        assert (await stream.next()).type == "stream.open"
        gateway.process.send_signal(signal.SIGTERM)
        close = await stream.next()
        assert (close.type, close.json) == ("stream.close", {"reason": "draining", "reconnect": True})
        assert stream.parser.retry != 3000
        await stream.rest()
        assert stream.ended
        async with safety_net():
            assert await gateway.process.wait() == 0
        events = [line["event"] for line in gateway.lines()]
        assert events[-6:] == ["signal", "draining", "stream_closed", "draining", "draining", "stopped"]
        phases = [line["phase"] for line in gateway.lines() if line["event"] == "draining"]
        assert phases == ["streams", "requests", "sources"]
        (closed,) = (line for line in gateway.lines() if line["event"] == "stream_closed")
        assert closed["reason"] == "draining"
        assert {"seconds", "events", "bytes", "connection", "channels"} <= closed.keys()


async def test_a_second_signal_ends_it_now(tmp_path: Path) -> None:
    """Impatient operators get what they want: the drain of 60 s is cut short."""
    async with process(tmp_path, "timeouts: {pre_drain: 0s, drain: 60s}") as gateway:
        streams = [await Stream.open(gateway.port, "/events/orders") for _ in range(20)]
        gateway.process.send_signal(signal.SIGTERM)
        await eventually(lambda: any(line["event"] == "draining" for line in gateway.lines()))
        gateway.process.send_signal(signal.SIGINT)
        async with safety_net():
            assert await gateway.process.wait() == 1
        assert "shutdown_forced" in [line["event"] for line in gateway.lines()]
        for stream in streams:
            stream.close()


async def test_redis_to_browser_through_the_shipped_command(tmp_path: Path, redis: RedisServer) -> None:
    """With REDIS_URL set, a publish reaches the stream; the log never shows the query or a token."""
    async with process(tmp_path, REDIS_URL=redis.url) as gateway:
        stream = await Stream.open(
            gateway.port, "/events/orders?lastEventId=canary-query", {"Authorization": "Bearer canary-token"}
        )
        await stream.until("stream.gap")
        async with safety_net():
            while redis.publish("orders.created", '{"a":1}') == 0:
                await asyncio.sleep(0.02)
        assert (await stream.until("message")).json["payload"] == {"a": 1}
        stream.close()
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{gateway.admin}/status") as answer,
        ):
            assert (await answer.json())["sources"][1]["status"] == "up"
        await eventually(lambda: "stream_opened" in json.dumps(gateway.lines()))
        text = json.dumps(gateway.lines())
        assert "canary" not in text


def test_check_tells_every_mistake_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What CI runs before a deploy."""
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(BROKEN)
    assert main(["check", "--config", "bad.yaml"]) == 1
    told = capfd.readouterr().err
    assert len(re.findall(r"^bad.yaml:\d+:\d+: ", told, re.MULTILINE)) == 8
    assert told.rstrip().endswith("bad.yaml: 8 errors")
    assert main(["run", "--config", "bad.yaml"]) == 1
    assert "8 errors" in capfd.readouterr().err


async def test_a_start_after_a_kill_9_is_like_the_first_and_tells_the_warnings_once(tmp_path: Path) -> None:
    """No lock and no file is left behind. What check warns of, and nobody looked at, is in the log."""
    more = "timeouts: {heartbeat: 2m}\n"
    async with process(tmp_path, more) as gateway:
        gateway.process.kill()
        await gateway.process.wait()
    async with process(tmp_path, more) as gateway:
        assert (await Stream.open(gateway.port, "/events/orders")).status == 200
        told = [line for line in gateway.lines() if line["event"] == "config_warning"]
    assert [(line["code"], line["key"], line["level"]) for line in told] == [
        ("heartbeat-over-proxy", "timeouts.heartbeat", "warning")
    ]
    assert told[0]["note"].startswith("common proxies close a stream")


def test_check_of_a_good_file_exits_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default configuration, found without a flag, or by the environment."""
    done = command("check")
    assert (done.returncode, done.stdout) == (
        0,
        "config/gateway.yaml: good; 1 channel from 4 sources\n"
        f"config/gateway.yaml: the log is {ROOT / 'var/gateway.db'}\n",
    )
    monkeypatch.chdir(ROOT)
    for name, value in (
        ("SSE_GATEWAY_CONFIG", "config/sidecar.yaml"), ("WEBHOOK_TOKEN", "t"), ("ADMIN_TOKEN", "t" * 16),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert main(["check"]) == 0
    assert capsys.readouterr().out.startswith("config/sidecar.yaml: good; ")


def test_schema_prints_the_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Editors and CI may take it from either."""
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((ROOT / "config/schema.json").read_text())


@pytest.mark.parametrize("key", ["listen", "admin"])
def test_a_taken_port_is_one_clear_line(tmp_path: Path, key: str) -> None:
    """Which address, which key of the file, what is wrong; no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = "admin" if key == "listen" else "listen"
        (tmp_path / "g.yaml").write_text(
            f"server: {{{key}: '127.0.0.1:{port}', {other}: '127.0.0.1:0'}}\nlog: {{level: error}}\n"
            "channels: {c: {from: [{source: h, topic: t}], access: public}}\n"
            "sources: {h: {type: webhook, verify: {none: true}}}\n"
        )
        done = command("run", "--config", str(tmp_path / "g.yaml"))
    assert done.returncode == 1
    assert done.stderr == (
        f"cannot listen on 127.0.0.1:{port} (server.{key}): the address is in use by another process\n"
    )


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_an_unreachable_tls_file_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    """Missing or broken: the file and the key of the YAML."""
    if content is not None:
        for name in ("tls.crt", "tls.key"):
            (tmp_path / name).write_text(content)
    (tmp_path / "g.yaml").write_text(
        f"server: {{listen: '127.0.0.1:0', admin: '127.0.0.1:0', "
        f"tls: {{certificate: {tmp_path}/tls.crt, key: {tmp_path}/tls.key}}}}\nlog: {{level: error}}\n"
        "channels: {c: {from: [{source: h, topic: t}], access: public}}\n"
        "sources: {h: {type: webhook, verify: {none: true}}}\n"
    )
    done = command("run", "--config", str(tmp_path / "g.yaml"))
    assert done.returncode == 1
    wrong = "cannot read {}: No such file or directory" if content is None else "{} holds no PEM"
    for key, name in (("certificate", "tls.crt"), ("key", "tls.key")):
        assert f": server.tls.{key}: {wrong.format(tmp_path / name)}" in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_errors_exit_2() -> None:
    """argparse's convention, documented."""
    with pytest.raises(SystemExit) as exit:
        main(["frobnicate"])
    assert exit.value.code == 2
    assert command("--version").stdout.startswith("sse-gateway ")


async def test_descriptors_never_run_out(tmp_path: Path) -> None:
    """Idle connections cannot take the last descriptors: the admin port answers, and the node recovers."""
    async with process(tmp_path, "limits: {connections: 50}", before="ulimit -n 420;") as gateway:
        held = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(500)]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{gateway.admin}/healthz") as answer:
                assert answer.status == 200
            for _, writer in held:
                writer.transport.abort()
            async with safety_net():
                while True:
                    try:
                        stream = await Stream.open(gateway.port, "/events/orders")
                        break
                    except (ConnectionError, asyncio.IncompleteReadError):
                        await asyncio.sleep(0.05)
        assert stream.status == 200
        assert len(gateway.lines()) < 50
        stream.close()
