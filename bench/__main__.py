"""``python -m bench``: run all scenarios, or those that are named, and write what they showed.

The exit status is 0 when every target is met and 1 when one is missed; missed rows say so.
"""

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from bench import report
from bench.scenarios import SCENARIOS
from bench.scenarios.base import Options, Row, Scenario, Target

FOLDER = Path("docs/benchmarks")


def main() -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the gateway and its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--quick", action="store_true", help="small runs, whose figures mean nothing")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long memory is watched (2)")
    parser.add_argument("--into", type=Path, help=f"folder of the report ({FOLDER}; with --quick none)")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    options = Options(quick=given.quick, minutes=given.minutes)
    folder = given.into or (None if given.quick else FOLDER)
    is_met = True
    for name in given.names or SCENARIOS:
        started = time.monotonic()
        rows = run(SCENARIOS[name], options)
        is_met = is_met and all(row.met for row in rows)
        if folder is not None:  # after each: an interrupted run has written what it has
            document = report.load_document(folder)
            report.add(document, name, rows, time.monotonic() - started)
            report.write(document, folder)
    return 0 if is_met else 1


def run(scenario: Scenario, options: Options) -> list[Row]:
    """Run one scenario within its time; what goes wrong is a row too, and a target that was missed."""
    print(f"\n{scenario.title}", flush=True)
    rows: list[Row] = []
    signal.signal(signal.SIGALRM, _ran_out)
    signal.setitimer(signal.ITIMER_REAL, scenario.limit + options.minutes * 60)
    started = time.monotonic()
    try:
        for row in scenario.measure(options):
            rows.append(row)
            print(_line(row), flush=True)
    except Exception as error:  # one scenario's trouble must not hide the others' figures
        traceback.print_exc()
        rows.append(Row(scenario.name, targets=(Target("runs to its end", False),), note=repr(error)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return rows


class RanOutError(Exception):
    """A scenario's time is up. Not a TimeoutError, which a scenario may take for a server's."""


def _ran_out(_: int, __: FrameType | None) -> None:
    raise RanOutError


def _line(row: Row) -> str:
    figures = ", ".join(
        f"{name} {figure:.4g}" if isinstance(figure, float) else f"{name} {figure}"
        for name, figure in row.figures.items()
    )
    targets = "; ".join(f"{target.text} {'met' if target.met else 'MISSED'}" for target in row.targets)
    return "  " + " | ".join(
        part for part in (row.server, str(row.workers or ""), figures, targets, row.note) if part
    )


if __name__ == "__main__":
    sys.exit(main())
