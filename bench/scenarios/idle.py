"""What an idle stream costs in memory."""

import time
from collections.abc import Iterator

from bench.load import load
from bench.scenarios.base import Options, Row, Scenario, Target, at_most
from bench.servers import MissingError, Setup, label, run

STREAMS = 15_000
SETTLE = 2.0
"""Seconds after the last handshake."""

CONTENDERS = (
    ("gateway", 1),
    ("gateway", 2),
    ("nchan", 1),
    ("nchan", 2),
    ("sse_starlette", 1),
    ("aiohttp_sse", 1),
    ("pushpin", 1),
)


def measure(options: Options) -> Iterator[Row]:
    """Open the streams on one server after the other."""
    streams = options.pick(STREAMS, 300)
    for name, workers in CONTENDERS:
        try:
            yield _row(name, workers, streams)
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _row(name: str, workers: int, streams: int) -> Row:
    with run(name, Setup(token="HS256", heartbeat=600), workers=workers) as server:
        target = server.target("orders")
        with load(server.port, [target], 200, source=20) as first:  # pools and caches are filled once
            first.open(ahead=server.ahead)
        time.sleep(SETTLE)
        before = server.pss()
        with load(server.port, server.targets("orders", streams), streams) as clients:
            opened = clients.open(ahead=server.ahead)
            time.sleep(SETTLE)
            after = server.pss()
            per_stream = (after - before) / max(1, opened.live) / 1024
            return Row(
                server.name,
                workers,
                {"streams": opened.live, "PSS KB per stream": per_stream, "PSS MB in all": after / 2**20},
                _targets(per_stream, streams - opened.live) if name == "gateway" else (),
                f"failed: {opened.failed}" if opened.failed else "",
            )


def _targets(per_stream: float, failed: int) -> tuple[Target, ...]:
    return (Target(f"failed {failed} = 0", not failed), at_most("PSS", per_stream, 3, " KB"))


SCENARIO = Scenario(
    "idle",
    f"{STREAMS:,} idle streams",
    "Growth of the proportional set size of all processes of a server while the streams open, after 200 "
    "have come "
    "and gone. The gateway checks a token for each. The kernel's memory for the sockets comes on top, "
    "alike for all.",
    measure,
)
