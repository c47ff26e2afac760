"""``python -m bench``: run everything, print a table, write ``bench/results/latest.json``.

The exit status is 0 when every target is met and 1 when one is missed; missed rows say so.
"""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import append, fanout, herd, ingest, latency, takeover


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    scenario: str
    figure: str
    target: str
    met: bool
    details: str


def fanout_rows() -> list[Row]:
    """Idle memory, and one event to all streams."""
    result = fanout.measure()
    return [
        Row(
            f"{result.streams} idle streams",
            f"{result.bytes_per_stream / 1024:.2f} KB PSS per stream",
            "< 4 KB",
            result.bytes_per_stream < 4096,
            "growth of the gateway's PSS while the streams open",
        ),
        Row(
            f"one event to {result.streams} streams",
            f"{result.ratio:.2f} x the C send() loop",
            "<= 1.5 x",
            result.ratio <= 1.5,
            f"CPU per delivery: gateway {result.gateway_us:.2f} us, C loop {result.loop_us:.2f} us; "
            f"median of {fanout.ROUNDS} alternating rounds of {fanout.EVENTS} events",
        ),
    ]


def append_rows() -> list[Row]:
    """What an append costs on each log."""
    rows = []
    for result in append.measure():
        figure = f"{result.ours:,.0f} events/s"
        bare = {"Redis": "pipelined XADDs", "SQLite": "INSERTs"}.get(result.log)
        rows.append(
            Row(
                f"append to {result.log}, {result.batch} a batch",
                figure if bare is None else f"{figure}, bare {bare} {result.ratio:.2f} x as many",
                "" if bare is None else "<= 2 x",
                bare is None or result.ratio <= 2,
                f"{append.AT_ONCE} appends at once; median of {append.ROUNDS} alternating rounds",
            )
        )
    return rows


def ingest_rows() -> list[Row]:
    """What comes in, by each way and with each log."""
    return [
        Row(
            f"{result.way}, log in {result.log}",
            f"{result.per_second:,.0f} events/s, {result.cpu_us:.1f} us of CPU each",
            ">= 20,000/s" if result.is_stream else "",
            not result.is_stream or result.per_second >= 20_000,
            f"{ingest.ENTRIES:,} entries" if result.is_stream else f"{ingest.CONNECTIONS} connections",
        )
        for result in ingest.measure()
    ]


def redis_rows() -> list[Row]:
    """The way through Redis, and what a herd and a death cost."""
    way, crowd, waits = latency.measure(), herd.measure(), takeover.measure()
    return [
        Row(
            f"Redis PUBLISH to {latency.STREAMS} sockets, log in Redis",
            f"p50 {way.p50 * 1e3:.1f} ms, p99 {way.p99 * 1e3:.1f} ms",
            "",
            True,
            f"{latency.EVENTS} events one by one; longest {way.longest * 1e3:.1f} ms",
        ),
        Row(
            f"{herd.CLIENTS} clients resume at once, log in Redis",
            f"{crowd.commands} Redis commands, all live after {crowd.seconds:.1f} s",
            "< 100 commands",
            crowd.commands < 100,
            f"{crowd.events:,} missed events replayed, on a node that holds none of them",
        ),
        Row(
            "the node that reads a source is killed",
            f"{sorted(waits)[len(waits) // 2]:.1f} s until the next event",
            "< 5 s",
            max(waits) < 5,
            f"median of {len(waits)}; longest {max(waits):.1f} s",
        ),
    ]


def main() -> int:
    """Run the benchmarks and return the exit status."""
    rows = fanout_rows() + append_rows() + ingest_rows() + redis_rows()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    print(f"\n{machine}, Python {platform.python_version()}\n")
    print("| scenario | figure | target | | how |\n|---|---|---|---|---|")
    for row in rows:
        verdict = "" if not row.target else "met" if row.met else "MISSED"
        print(f"| {row.scenario} | {row.figure} | {row.target} | {verdict} | {row.details} |")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "latest.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
