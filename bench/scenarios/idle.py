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


OWN_STREAMS = 2000
OWN = (1, 10, 50)
"""Channels of a template that no other stream follows, on each stream."""

OWN_LIMITS = {1: 4, 10: 7, 50: 20}
"""Most KB a stream with so many may take."""


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


def measure_own(options: Options) -> Iterator[Row]:
    """Open streams whose channels nobody else follows, more of them each time."""
    for channels in OWN:
        yield _own_row(channels, options.pick(OWN_STREAMS, 100))


def _own_row(channels: int, streams: int) -> Row:
    with run("gateway", Setup(channels=("orders", "user.{id}"), heartbeat=600)) as server:
        with load(server.port, [server.target("orders")], 200, source=20) as first:
            first.open(ahead=server.ahead)
        time.sleep(SETTLE)
        before = server.pss()
        targets = [
            "/events?channel=" + ",".join(f"user.{stream}-{number}" for number in range(channels))
            for stream in range(streams)
        ]
        with load(server.port, targets, streams) as clients:
            opened = clients.open(ahead=server.ahead)
            time.sleep(SETTLE)
            per_stream = (server.pss() - before) / max(1, opened.live) / 1024
            failed = streams - opened.live
            return Row(
                f"{channels} of its own",
                1,
                {"streams": opened.live, "PSS KB per stream": per_stream},
                (
                    Target(f"failed {failed} = 0", not failed),
                    at_most("PSS", per_stream, OWN_LIMITS[channels], " KB"),
                ),
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

OWN_SCENARIO = Scenario(
    "own-channels",
    f"{OWN_STREAMS:,} idle streams with channels of their own",
    "The same for streams that follow channels of a template which nobody else follows, as a user's own are. "
    f"{max(OWN)} are as many as `limits.channels_per_stream` allows by default.",
    measure_own,
)
