"""Signs of life of idle streams while a herd arrives."""

import time
from collections.abc import Iterator

from bench.load import STORM, load
from bench.scenarios.base import Options, Row, Scenario, Target
from bench.servers import MissingError, Server, Setup, label, run

HEARTBEAT = 2.0
CONTENDERS = (
    ("gateway", 1, 9_500, 9_500),
    ("nchan", 1, 9_500, 9_500),
    ("gateway", 2, 15_000, 10_000),
    ("nchan", 2, 15_000, 10_000),
)
"""Server, workers, idle streams, herd."""

AFTER = 6.0
"""Seconds that are watched after the herd has arrived, or after it began where it takes longer."""


def measure(options: Options) -> Iterator[Row]:
    """Let a herd come to one server after the other."""
    for name, workers, idle, herd in CONTENDERS:
        try:
            with run(name, Setup(heartbeat=HEARTBEAT), workers=workers) as server:
                yield _row(server, options.pick(idle, 200), options.pick(herd, 200), name == "gateway")
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _row(server: Server, idle: int, herd: int, is_ours: bool) -> Row:
    with (
        load(server.port, [server.target("orders")], idle) as waiting,
        load(server.port, [server.target("orders")], herd, source=20) as coming,
    ):
        waiting.open_all(ahead=server.ahead)
        time.sleep(HEARTBEAT * 1.5)
        waiting.reset()
        time.sleep(HEARTBEAT * 2)
        calm = waiting.stats().silence
        waiting.reset()
        opened = coming.open(ahead=STORM)
        time.sleep(AFTER)
        stats = waiting.stats()
        late = {share: stats.silence.percentile(share) - HEARTBEAT for share in (0.5, 0.99)}
        failed = sum(opened.failed.values())
        targets: tuple[Target, ...] = ()
        if is_ours:
            targets = (
                Target(f"p99 late by {late[0.99]:.2f} s < 1 s", late[0.99] < 1),
                Target(f"failed {failed} and lost {stats.lost} = 0", not failed and not stats.lost),
            )
        return Row(
            server.name,
            server.workers,
            {
                "idle": idle,
                "herd": herd,
                "calm: p99 late s": calm.percentile(0.99) - HEARTBEAT,
                "p50 late s": late[0.5],
                "p99 late s": late[0.99],
                "longest late s": stats.silence.longest - HEARTBEAT,
                "herd failed": failed,
                "idle lost": stats.lost,
            },
            targets,
        )


SCENARIO = Scenario(
    "heartbeats",
    "Signs of life while a herd arrives",
    f"Idle streams with a heartbeat of {HEARTBEAT:.0f} s; a herd connects as fast as one process can. "
    "Late is a stream's "
    "longest time without a byte, less the heartbeat; percentiles are over streams. One process of a "
    "server has 20,000 "
    "descriptors here, so with one worker both are 9,500.",
    measure,
)
