"""All clients connect at once."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.load import STORM, load
from bench.payload import payload
from bench.scenarios.base import Figure, Options, Row, Scenario, Target, at_most
from bench.servers import MissingError, Setup, label, run

STREAMS = 15_000
ROUNDS = 3
SECONDS = 60.0
"""After which a stream that is not live has failed."""

CONTENDERS = (
    ("gateway", 1),
    ("nchan", 1),
    ("gateway", 2),
    ("nchan", 2),
    ("sse_starlette", 1),
    ("aiohttp_sse", 1),
    ("pushpin", 1),
)

_IN_EACH_ROUND = ("gateway", "nchan")
"""The others come once: theirs is no close race."""


@dataclass(slots=True)
class _Storms:
    name: str = ""
    failed: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    retransmitting: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    longest: float = 0.0
    cpu: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Figure]:
        median = statistics.median
        return {
            "failed": ", ".join(f"{count} {reason}" for reason, count in self.failed.items()) or 0,
            "all live after s": median(self.seconds),
            "p50 s": median(self.p50),
            "p99 s": median(self.p99),
            "longest s": self.longest,
            "CPU us per handshake": median(self.cpu),
            "with retransmissions": int(median(self.retransmitting)),
            "client's CPU us": median(self.client),
        }


def measure(options: Options) -> Iterator[Row]:
    """Let a storm come over each server, fresh each time, in alternating rounds."""
    streams = options.pick(STREAMS, 300)
    storms: dict[tuple[str, int], _Storms] = {}
    for number in range(options.pick(ROUNDS, 1)):
        for name, workers in CONTENDERS:
            if number and name not in _IN_EACH_ROUND:
                continue
            try:
                _storm(storms.setdefault((name, workers), _Storms()), name, workers, streams)
            except MissingError as missing:
                if not number:
                    yield Row(label(name), workers, note=str(missing))
                del storms[name, workers]
    for (name, workers), each in storms.items():
        yield Row(each.name, workers, each.figures(), _targets(storms, name, workers))


def _storm(storms: _Storms, name: str, workers: int, streams: int) -> None:
    with run(name, Setup(), workers=workers) as server:
        storms.name = server.name
        target = server.target("orders")
        with load(server.port, [target], 100, source=20) as first:  # what is made once is made
            first.open(ahead=server.ahead)
        time.sleep(0.3)
        with load(server.port, [target], streams) as clients:
            cpu, started = server.cpu(), time.monotonic()
            opened = clients.open(ahead=STORM, seconds=SECONDS)
            storms.cpu.append((server.cpu() - cpu) / streams * 1e6)
            storms.client.append(clients.cpu() / streams * 1e6)
            storms.seconds.append(opened.at - started)
            storms.p50.append(opened.handshake.percentile(0.5))
            storms.p99.append(opened.handshake.percentile(0.99))
            storms.longest = max(storms.longest, opened.handshake.longest)
            storms.retransmitting.append(opened.retransmitting)
            for reason, count in opened.failed.items():
                storms.failed[reason] = storms.failed.get(reason, 0) + count
            clients.reset()
            clients.expect(1, seconds=20)
            server.publish("orders", [payload()])
            storms.missing += clients.live - clients.arrived().events


def _targets(storms: dict[tuple[str, int], _Storms], name: str, workers: int) -> tuple[Target, ...]:
    if name != "gateway":
        return ()
    own = storms[name, workers]
    failed = sum(own.failed.values())
    targets = [
        Target(f"failed {failed} = 0", not failed),
        Target(f"then without an event {own.missing} = 0", not own.missing),
    ]
    if rival := storms.get(("nchan", workers)):
        ratio = statistics.median(own.cpu) / statistics.median(rival.cpu)
        targets.append(at_most("CPU", ratio, 2, " x nchan"))
    return tuple(targets)


SCENARIO = Scenario(
    "storm",
    f"{STREAMS:,} clients connect at once",
    "As fast as one process can connect, with nothing held back and nothing tried again; medians of "
    f"{ROUNDS} "
    "storms, each on a fresh server, in turns (one for those beside the gateway and nchan). Times go "
    "from connect() "
    "to the first block of the body. A stream with retransmissions met a full backlog. Then all must "
    "receive an event.",
    measure,
    limit=400,
)
