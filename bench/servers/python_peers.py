"""Servers written with sse-starlette and aiohttp-sse, on the same interpreter as the gateway."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from bench.process import free_port, running, wait_for_port
from bench.servers.base import MissingError, Server, Setup, Start, with_last_id


class PythonPeer(Server):
    """One process with a queue per client; it keeps no history."""

    batch = 1000

    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return the path."""
        return with_last_id(f"/events/{channel}", last_event_id)

    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Post the events as lines."""
        self._posting.post(f"/publish/{channel}", b"\n".join(payloads), "text/plain")


def starter(name: str, module: str, packages: Sequence[str]) -> Start:
    """Return what runs a program of ``bench/servers/programs``."""

    @contextlib.contextmanager
    def start(setup: Setup) -> Iterator[Server]:
        if setup.workers > 1:
            raise MissingError("one process has its clients in its own memory")
        if setup.tls:
            raise MissingError("not measured with TLS")
        port = free_port()
        command = [
            sys.executable,
            "-m",
            f"bench.servers.programs.{module}",
            str(port),
            f"{setup.heartbeat:g}",
        ]
        versions = _versions(packages)
        with running(*command) as process:
            wait_for_port(port, alive=process.is_running)
            server = PythonPeer(setup, port, [process])
            server.name, server.version = name, versions
            try:
                yield server
            finally:
                server.close()

    return start


def _versions(packages: Sequence[str]) -> str:
    try:
        found = [version(package) for package in packages]
    except PackageNotFoundError as missing:
        raise MissingError(f"not installed: pip install -e '.[bench]' ({missing.name})") from None
    return f"{found[0]} on " + ", ".join(
        f"{package} {each}" for package, each in zip(packages[1:], found[1:], strict=True)
    )


start_sse_starlette = starter(
    "sse-starlette", "sse_starlette", ("sse-starlette", "uvicorn", "uvloop", "httptools")
)
start_aiohttp_sse = starter("aiohttp-sse", "aiohttp_sse", ("aiohttp-sse", "aiohttp", "uvloop"))
