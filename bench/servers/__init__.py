"""The servers under test, all behind one interface."""

import contextlib
from dataclasses import replace

from bench.servers import gateway, nchan, pushpin, python_peers, send_loop
from bench.servers.base import MissingError, Server, Setup, Start

SERVERS: dict[str, Start] = {
    "gateway": gateway.start,
    "nchan": nchan.start,
    "send_loop": send_loop.start,
    "sse_starlette": python_peers.start_sse_starlette,
    "aiohttp_sse": python_peers.start_aiohttp_sse,
    "pushpin": pushpin.start,
}

_LABELS = {
    "gateway": "sse-gateway",
    "send_loop": "C send() loop",
    "sse_starlette": "sse-starlette",
    "aiohttp_sse": "aiohttp-sse",
}

__all__ = ["SERVERS", "MissingError", "Server", "Setup", "label", "run"]


def run(
    name: str, setup: Setup | None = None, *, workers: int = 1
) -> contextlib.AbstractContextManager[Server]:
    """Run a server for the length of a ``with`` block. Raises MissingError."""
    return SERVERS[name](replace(setup or Setup(), workers=workers))


def label(name: str) -> str:
    """Return what a server is called in tables."""
    return _LABELS.get(name, name)
