"""``python -m tests.soak --minutes 60``: a long run on each log; writes docs/benchmarks/soak.md."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.machine import machine
from tests.soak.run import LOGS, Soak, caches, now, soak, table

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "soak.md"

HEAD = """# Soak

Written by `python -m tests.soak --minutes {minutes:g}` on {day} ({machine}).

A gateway under churn: steady streams, and callers that come once. Users with a token and a channel of their own,
users with a ticket, posts with idempotency keys, signed posts, Redis streams that live for seconds, pub/sub topics that
are used once, strangers with unknown origins, channels and tokens. It is looked at from inside: every container that an
object of the gateway holds, every kind of object, and every table or key of its log. *Warmed up* is the largest of the
second third of the run, *at the end* of the last third, *idle* a while after the load ended. What is larger at the end by
more than a tenth, and stays so when idle, **grows**, and the run fails. Caches fill up to their bounds and stay full. So that each is full before
the second third, they may hold {caches} entries here in place of their own bounds (0: their own), logs remember a quiet
channel for seconds in place of a day, and pub/sub keeps seconds of records in place of a minute.

## Full caches

What a cache takes at its own bound, from the bytes of an entry in this run. A cache that is full stays full: entries are
replaced, not aged.

{full}
## The runs

"""


async def runs(options: argparse.Namespace) -> list[Soak]:
    """Run the logs side by side."""

    async def one(log: str) -> Soak:
        with tempfile.TemporaryDirectory() as folder:
            return await soak(
                log,
                Path(folder),
                minutes=options.minutes,
                steady=options.streams,
                rate=options.rate,
                caches=options.caches,
                idle=options.idle,
            )

    return await asyncio.gather(*(one(log) for log in options.logs))


def main() -> int:
    """Soak, write the page, and return the exit status: 1 if anything grew."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--logs", nargs="+", choices=LOGS, default=list(LOGS))
    parser.add_argument("--streams", type=int, default=300, help="steady ones")
    parser.add_argument("--rate", type=float, default=10.0, help="visits of each kind a second")
    parser.add_argument(
        "--caches", type=int, default=2000, help="entries that a cache may hold; 0: its own bound"
    )
    parser.add_argument("--idle", type=float, default=70.0, help="seconds after the load")
    options = parser.parse_args()
    found = asyncio.run(runs(options))
    about = ", ".join(f"{name}: {value}" for name, value in machine().items())
    text = HEAD.format(
        minutes=options.minutes, caches=options.caches, full=caches(found), day=now(), machine=about
    )
    PAGE.write_text(text + "\n".join(table(each) for each in found))
    for each in found:
        print(f"{each.log}: {', '.join(each.growing) or 'flat'}")
    return int(any(each.growing for each in found))


if __name__ == "__main__":
    sys.exit(main())
