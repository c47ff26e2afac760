"""``python -m bench``: run everything, print a table, write ``bench/results/latest.json``.

The exit status is 0 when every target is met and 1 when one is missed; missed rows say so.
"""

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import fanout


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


def main() -> int:
    """Run the benchmarks and return the exit status."""
    rows = fanout_rows()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    print(f"\n{machine}, Python {platform.python_version()}\n")
    print("| scenario | figure | target | | how |\n|---|---|---|---|---|")
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        print(f"| {row.scenario} | {row.figure} | {row.target} | {verdict} | {row.details} |")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "latest.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
