"""A herd comes back at once, each client with the id of the last event that it had."""

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.load import STORM, load
from bench.payload import payload
from bench.reader import EventIdReader
from bench.scenarios.base import Figure, Options, Row, Scenario, Target
from bench.servers import MissingError, Setup, label, run

CLIENTS = 10_000
EVENTS = 200
"""In the history; a client missed up to half of them."""

ROUNDS = 3
SECONDS = 60.0

CONTENDERS = (("gateway", 1), ("nchan", 1), ("gateway", 2), ("nchan", 2))


@dataclass(slots=True)
class _Herds:
    name: str = ""
    failed: int = 0
    gaps: int = 0
    missing: int = 0
    replayed: list[int] = field(default_factory=list)
    live: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def measure(options: Options) -> Iterator[Row]:
    """Let herds come to each server, fresh each time, in alternating rounds."""
    clients = options.pick(CLIENTS, 300)
    herds: dict[tuple[str, int], _Herds] = {}
    for number in range(options.pick(ROUNDS, 1)):
        for name, workers in CONTENDERS:
            try:
                _herd(herds.setdefault((name, workers), _Herds()), name, workers, clients, number)
            except MissingError as missing:
                if not number:
                    yield Row(label(name), workers, note=str(missing))
                del herds[name, workers]
    for (name, workers), each in herds.items():
        troubles = each.failed + each.gaps + each.missing
        figures: dict[str, Figure] = {
            "events replayed": int(statistics.median(each.replayed)),
            "all live after s": statistics.median(each.live),
            "all replayed after s": statistics.median(each.seconds),
            "CPU us per client": statistics.median(each.cpu),
            "failed": each.failed,
            "gaps": each.gaps,
            "events missing": each.missing,
        }
        ours = (
            (Target(f"failed, gaps and missing {troubles} = 0", not troubles),) if name == "gateway" else ()
        )
        yield Row(each.name, workers, figures, ours)


def _herd(herds: _Herds, name: str, workers: int, clients: int, seed: int) -> None:
    chance = random.Random(seed)
    with run(name, Setup(), workers=workers) as server:
        herds.name = server.name
        with EventIdReader(server, "orders") as reader:
            for _ in range(EVENTS // 20):
                server.publish("orders", [payload() for _ in range(20)])
            ids = reader.take(EVENTS)
        missed = [chance.randrange(1, EVENTS // 2) for _ in range(clients)]
        targets = [server.target("orders", ids[-1 - number]) for number in missed]
        with load(server.port, targets, clients) as herd:
            cpu, started = server.cpu(), time.monotonic()
            opened = herd.open(ahead=STORM, seconds=SECONDS)
            herd.expect_in_all(sum(missed), seconds=20)
            answer = herd.arrived()
            herds.cpu.append((server.cpu() - cpu) / clients * 1e6)
            herds.live.append(opened.at - started)
            herds.seconds.append(max(answer.at, opened.at) - started)
            herds.replayed.append(answer.events)
            herds.failed += sum(opened.failed.values())
            herds.gaps += herd.stats().gaps
            herds.missing += sum(missed) - answer.events


SCENARIO = Scenario(
    "herd",
    f"{CLIENTS:,} clients come back at once",
    f"Each with a Last-Event-ID of its own, behind which it missed 1 to {EVENTS // 2 - 1} events of 100 "
    "bytes, all "
    f"connecting as fast as one process can; medians of {ROUNDS} rounds in turns, each on a fresh server.",
    measure,
)
