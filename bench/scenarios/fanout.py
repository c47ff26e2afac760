"""One event after the other to many idle streams: CPU per delivery, and how long it takes."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.figures import Times
from bench.load import PER_PROCESS, Load, load
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, Target, all_delivered, at_most
from bench.servers import MissingError, Server, Setup, label, run

STREAMS = 15_000
ROUNDS = 5
EVENTS = 5
"""Events of a server's turn in a round, one after the other: each has arrived everywhere before the next."""

PAUSE = 0.1
"""Seconds between two events."""

CONTENDERS = (
    ("send_loop", 1),
    ("gateway", 1),
    ("gateway", 2),
    ("nchan", 1),
    ("nchan", 2),
    ("sse_starlette", 1),
    ("aiohttp_sse", 1),
    ("pushpin", 1),
)


@dataclass(slots=True)
class _Contender:
    server: Server
    load: Load
    cpu: list[float] = field(default_factory=list)
    """Microseconds per delivery, of each round."""
    client_cpu: list[float] = field(default_factory=list)
    latency: list[Times] = field(default_factory=list)
    failed: int = 0
    """Streams that did not come to life."""
    missing: int = 0
    trouble: str = ""

    def turn(self) -> None:
        """Take a turn, unless an earlier one ended in trouble: that is its own, and the others go on."""
        try:
            if not self.trouble:
                self._turn()
        except (OSError, RuntimeError) as error:
            self.trouble = f"gave up: {error}"

    def _turn(self) -> None:
        self.load.reset()
        before, client_before, got = self.server.cpu(), self.load.cpu(), 0
        for number in range(EVENTS):
            self.load.expect(number + 1, seconds=20)
            self.server.publish("orders", [payload()])
            answer = self.load.arrived()
            got = answer.events
            if not answer.complete:
                self.missing += self.load.live * (number + 1) - got
                break
            time.sleep(PAUSE)
        self.cpu.append((self.server.cpu() - before) / max(1, got) * 1e6)
        self.client_cpu.append((self.load.cpu() - client_before) / max(1, got) * 1e6)
        self.latency.append(self.load.stats().latency)

    @property
    def note(self) -> str:
        failed = f"{self.failed} streams failed" if self.failed else ""
        missing = f"{self.missing} deliveries missing after 20 s" if self.missing else ""
        return "; ".join(part for part in (self.trouble, failed, missing) if part)

    @property
    def cpu_us(self) -> float:
        return statistics.median(self.cpu)

    def percentile_ms(self, share: float) -> float:
        return statistics.median(times.percentile(share) for times in self.latency) * 1e3


def measure(options: Options) -> Iterator[Row]:
    """Run all servers side by side, each with streams of its own, in alternating rounds."""
    streams, rounds = options.pick(STREAMS, 200), options.pick(ROUNDS, 2)
    # Signs of life of those that wait for their turn would cost the others time; `heartbeats` measures them.
    setup = Setup(heartbeat=600)
    with ExitStack() as stack:
        contenders: dict[tuple[str, int], _Contender] = {}
        for name, workers in CONTENDERS:
            try:
                server = stack.enter_context(run(name, setup, workers=workers))
            except MissingError as missing:
                yield Row(label(name), workers, note=str(missing))
                continue
            assert streams <= PER_PROCESS
            server.expect_streams(streams)
            clients = stack.enter_context(load(server.port, [server.target("orders")], streams))
            opened = clients.open(ahead=server.ahead)
            server.streams_are_open()
            failed = sum(opened.failed.values())
            contenders[name, workers] = _Contender(server, clients, failed=failed)
        for each in contenders.values():  # what is made once is made
            each.turn()
            for figures in (each.cpu, each.client_cpu, each.latency):
                figures.clear()
        for _ in range(rounds):
            for each in contenders.values():
                each.turn()
        yield from _rows(contenders)


def _rows(contenders: dict[tuple[str, int], _Contender]) -> Iterator[Row]:
    floor = contenders["send_loop", 1].cpu_us
    for (name, workers), each in contenders.items():
        if not each.cpu:
            yield Row(
                each.server.name,
                workers,
                note=each.note,
                targets=(Target("runs", False),) * (name == "gateway"),
            )
            continue
        targets: list[Target] = []
        rival = contenders.get(("nchan", workers))
        if name == "gateway":
            if workers == 1:
                targets.append(at_most("CPU", each.cpu_us / floor, 1.1, " x C loop"))
            if rival is not None and workers == 1:
                targets.append(at_most("CPU", each.cpu_us / rival.cpu_us, 0.8, " x nchan"))
            if rival is not None and workers == 2:
                targets.append(at_most("p99", each.percentile_ms(0.99), rival.percentile_ms(0.99), " ms"))
            targets.append(all_delivered(each.failed, each.missing))
        yield Row(
            each.server.name,
            workers,
            {
                "CPU us per delivery": each.cpu_us,
                "x C loop": each.cpu_us / floor,
                "p50 ms": each.percentile_ms(0.5),
                "p99 ms": each.percentile_ms(0.99),
                "longest ms": max(times.longest for times in each.latency) * 1e3,
                "client's CPU us": statistics.median(each.client_cpu),
            },
            tuple(targets),
            each.note,
        )


SCENARIO = Scenario(
    "fanout",
    f"One event to {STREAMS:,} streams",
    f"All servers run side by side, each with its own streams and load client, and take turns: {EVENTS} "
    "events "
    "of 100 bytes, each once the one before has arrived everywhere. Figures are medians of "
    f"{ROUNDS} rounds. CPU is user and system time of all processes of a server, the publishing request "
    "included. "
    "Latency goes from before the publishing request to the client's read, over all streams. The C loop is "
    "sent the bytes that the gateway sends; it knows no HTTP.",
    measure,
)
