"""Real clients in processes of their own, started by jobs; what they report comes back as lines of JSON.

One process of Node runs all clients of npm, one of Python those of PyPI and curl, and one for each other language its
own: each client any number of times.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients import build
from tests.clients.catalog import CLIENTS
from tests.clients.tap import Tap
from tests.support.deadline import safety_net
from tests.support.needs import need, need_npm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

TYPES = ["message", "order", "stream.open", "stream.gap", "stream.close", "stream.heartbeat"]
"""The types of events that clients listen for which need to know them."""

LONGEST_LINE = 1 << 24
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Told:
    """An event as a client gave it to its listener."""

    type: str
    data: str
    id: str | None

    @property
    def is_own(self) -> bool:
        """Whether it is one of the gateway's own, as it was sent or as client/client.js gives it."""
        return self.type.startswith("stream.") and self.data.startswith("{")


@dataclass(eq=False)
class Client:
    """One client at work, behind a tap of its own, which knows better than it how often it connected."""

    name: str
    tap: Tap
    crashes: list[str]
    """Errors in its process that no client would own."""
    events: list[Told] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    opens: int = 0
    is_over: bool = False
    """It said that it will not come back."""

    def hear(self, report: dict[str, Any]) -> None:
        """Take one line of its reports."""
        kind = report["kind"]
        if kind == "event":
            self.events.append(Told(report["type"], report["data"], report.get("id")))
        elif kind == "error":
            self.errors.append(report)
        elif kind == "open":
            self.opens += 1
        elif kind == "end":
            self.is_over = True
        else:
            raise AssertionError(report)

    def __repr__(self) -> str:
        requests = [(line.asked.split(b"\r\n"), line.answered[-300:]) for line in self.tap.lines]
        said = f"opens={self.opens} over={self.is_over} {self.errors}"
        return f"{self.name}: {said} {self.events} {requests}"


class Zoo:
    """The processes."""

    def __init__(self) -> None:
        self.crashes: list[str] = []
        self._ready = 0
        self._clients: dict[str, Client] = {}
        self._processes: dict[str, Process] = {}
        self._readers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Start the processes, and wait until they take jobs. Raises TimeoutError."""
        node = need("node", "nodejs")
        need("curl", "curl")
        await asyncio.to_thread(need_npm, HERE)  # other workers' tests go on meanwhile
        commands = await asyncio.to_thread(build.commands) | {
            "node": [node, str(HERE / "node" / "zoo.js")],
            "python": [sys.executable, "-m", "tests.clients.python.zoo"],
        }
        for runs_in, command in commands.items():
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE, limit=LONGEST_LINE
            )
            self._processes[runs_in] = process
            self._readers += [asyncio.create_task(self._read(process)), asyncio.create_task(_drop(process))]
        async with safety_net():
            while self._ready < len(commands):
                assert not self.crashes, self.crashes
                await asyncio.sleep(0.02)

    def start(self, name: str, tap: Tap, path: str, watchdog: float, token: Path | None) -> Client:
        """Let a client read ``path``, a path with a query that names its channels, through a tap."""
        client = Client(name, tap, self.crashes)
        job = str(len(self._clients))
        self._clients[job] = client
        base = f"http://127.0.0.1:{tap.port}"
        query = dict(pair.split("=", 1) for pair in path.partition("?")[2].split("&"))
        order = {
            "job": job,
            "client": name,
            "url": base + path,
            "base": base,
            "channels": query["channel"].split(","),
            "types": TYPES,
            "watchdog": round(watchdog * 1000),
            "tokenFile": None if token is None else str(token),
        }
        stdin = self._processes[CLIENTS[name].runs_in].stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        return client

    async def close(self) -> None:
        """End the processes; harmless when repeated."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()  # they end when nobody can tell them anything; so too when a test dies
        for process in self._processes.values():
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*self._readers)

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            report = json.loads(line)
            if report["kind"] == "crash":
                self.crashes.append(report["message"])
            elif report["kind"] == "ready":
                self._ready += 1
            else:
                self._clients[report["job"]].hear(report)


async def _drop(process: Process) -> None:
    # event-source-polyfill writes each error to the console.
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass


@asynccontextmanager
async def zoo_running() -> AsyncIterator[Zoo]:
    """Run clients; fails in the end if one threw where nobody could catch it."""
    zoo = Zoo()
    try:
        await zoo.run()
        yield zoo
    finally:
        await zoo.close()
    assert not zoo.crashes
