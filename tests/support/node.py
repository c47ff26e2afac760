"""Gateways as processes of their own, to be killed, frozen and started again."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from bench.process import free_port
from tests.support.deadline import safety_net

ROOT = Path(__file__).parents[2]


class Node:
    """One gateway. Its ports stay the same over restarts, as behind a balancer.

    ``module`` is what is run in place of ``gateway``, with its first arguments. On loopback addresses
    (``host``) of their own several nodes may have the same ports, as they have on machines of their own.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *module: str,
        host: str = "127.0.0.1",
        ports: tuple[int, int] | None = None,
    ) -> None:
        self.host = host
        self.port, self.admin = ports or (free_port(), free_port())
        self.log = folder / f"node-{host}-{self.port}.log"
        self.file = folder / f"node-{host}-{self.port}.yaml"
        self._module = module or ("gateway",)
        self._process: asyncio.subprocess.Process | None = None
        server = {
            **config.get("server", {}),
            "listen": f"{host}:{self.port}",
            "admin": f"{host}:{self.admin}",
        }
        self._sign = b"workers_listening" if "workers" in server else b"listening"
        log = {"level": "info", "format": "json"}  # `start` waits for a line of it
        timeouts = {"pre_drain": "0s", **config.get("timeouts", {})}
        self.config = {**config, "server": server, "logging": log, "timeouts": timeouts}
        self.write(self.config)

    def write(self, config: Mapping[str, Any]) -> None:
        """Put another configuration where its file is, as one change."""
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(config))  # JSON is YAML
        new.replace(self.file)

    async def start(self) -> None:
        """Start, and wait until it listens."""
        with self.log.open("a") as log:
            said = self.log.stat().st_size
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *self._module, "run", "--config", str(self.file)),
                stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
        async with safety_net():  # a machine that runs browsers too may take half of it
            while self._sign not in self.log.read_bytes()[said:]:
                assert self._process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; SIGSTOP freezes it, SIGCONT lets it go on."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it without a goodbye; harmless when repeated."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        await self.ended()

    async def stop(self) -> None:
        """Ask it to go and wait until it went. Its exit status must be 0."""
        self.signal(signal.SIGTERM)
        assert await self.ended() == 0, self.log.read_text()[-3000:]

    async def ended(self) -> int:
        """Wait for its end and return its exit status."""
        return 0 if self._process is None else await self._process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


async def kill_all(nodes: Sequence[Node]) -> None:
    """End all of them."""
    await asyncio.gather(*(node.kill() for node in nodes))


async def leading(nodes: Sequence[Node]) -> Node | None:
    """Return the node that reads the source; None if none does."""
    async with aiohttp.ClientSession() as session:
        for node in nodes:
            async with session.get(f"http://127.0.0.1:{node.admin}/status") as answer:
                if any(source.get("leader") for source in (await answer.json())["sources"]):
                    return node
    return None
