"""What honest streams feel while strangers do what they can."""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.load import Load, load
from bench.paced import Paced
from bench.payload import payload
from bench.process import Process, running
from bench.scenarios.base import Options, Row, Scenario, Target
from bench.servers import Server, Setup, run

STREAMS = 1000
RATE = 20
"""Events a second: with so many streams about a quarter of a core."""

PHASE = 3.0
"""Seconds of half a round."""

ROUNDS = 3

RATES = {
    "slowloris": 50,
    "silence": 200,
    "header_flood": 20,
    "oversize": 5,
    "bombs": 5,
    "malformed": 300,
    "connects": 300,
    "chatter": 10,
    "forged_ids": 100,
    "forged_answers": 300,
    "smuggling": 200,
}
"""Doses a second of each abuse, all from one address."""

TOGETHER = 0.25
"""Share of these rates, where all abuses come at once."""

HONEST = ("127.0.0.1/32", "127.0.0.2/31", "127.0.0.4/31")
"""The addresses of the publisher and of the load client, which have no limits: all streams share them."""

LINES = 10 + 2 * 200 + 10
"""Most lines a second: of refused streams, of those that an address may open and that end, and of posts."""

GROWN = 16.0
"""MB that memory may have grown by at the end of an abuse's rounds, from where it was after the first."""


@dataclass(slots=True)
class _Felt:
    """What one abuse did, by round."""

    calm: list[float] = field(default_factory=list)
    """p99 in ms."""
    abused: list[float] = field(default_factory=list)
    doses: list[float] = field(default_factory=list)
    """A second."""
    lines: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """MB."""
    cpu: list[float] = field(default_factory=list)
    """Share of a core that it cost the gateway."""


def measure(options: Options) -> Iterator[Row]:
    """Take turns with and without each abuse, then with all of them."""
    setup = Setup(channels=("orders", "dump"), trusted=HONEST, log="info")
    plans = {name: {name: float(rate)} for name, rate in RATES.items()}
    plans["all at once"] = {name: rate * TOGETHER for name, rate in RATES.items()}
    streams = options.pick(STREAMS, 50)
    with run("gateway", setup) as server, load(server.port, [server.target("orders")], streams) as clients:
        clients.open_all()
        _phase(server, clients, options)
        for name, rates in plans.items():
            yield _row(name, _rounds(server, clients, rates, options), clients)


def _rounds(server: Server, clients: Load, rates: dict[str, float], options: Options) -> _Felt:
    felt = _Felt()
    told = [f"{name}={rate}" for name, rate in rates.items()]
    with running(sys.executable, "-m", "bench.abuser", str(server.port), *told, stderr=None) as abuser:
        abuser.answer()
        for _ in range(options.pick(ROUNDS, 1)):
            cpu = server.cpu()
            felt.calm.append(_phase(server, clients, options))
            calm, lines = server.cpu() - cpu, server.lines()
            felt.abused.append(_phase(server, clients, options, abuser))
            seconds = _seconds(options)
            felt.cpu.append((server.cpu() - cpu - 2 * calm) / seconds)
            felt.doses.append(int(abuser.answer()) / seconds)
            felt.lines.append((server.lines() - lines) / seconds)
            felt.memory.append(server.pss() / 2**20)
    return felt


def _seconds(options: Options) -> float:
    return options.pick(int(PHASE), 1)


def _phase(server: Server, clients: Load, options: Options, abuser: Process | None = None) -> float:
    """Publish for a while, and return the p99 in ms."""
    clients.reset()
    seconds = _seconds(options)
    if abuser is not None:
        abuser.tell(str(seconds))
    with Paced(
        lambda group: server.publish("orders", group), payload, rate=RATE, group=1, events=int(seconds * RATE)
    ) as paced:
        paced.wait(seconds * 2)
    clients.expect(paced.published, seconds=20)
    if not clients.arrived().complete:
        raise RuntimeError(f"{server} did not deliver everything")
    return clients.stats().latency.percentile(0.99) * 1e3


def _row(name: str, felt: _Felt, clients: Load) -> Row:
    times = statistics.median(with_ / calm for calm, with_ in zip(felt.calm, felt.abused, strict=True))
    lines, grown = max(felt.lines), felt.memory[-1] - felt.memory[0]
    lost = clients.stats().lost
    return Row(
        "sse-gateway",
        None,
        {
            "abuse": name.replace("_", " "),
            "doses/s": statistics.median(felt.doses),
            "% of a core": 100 * statistics.median(felt.cpu),
            "calm: p99 ms": statistics.median(felt.calm),
            "p99 ms": statistics.median(felt.abused),
            "times": times,
            "lines/s": lines,
            "PSS MB": felt.memory[-1],
            "grown MB": grown,
            "streams lost": lost,
        },
        (
            Target(f"p99 {times:.2f} x <= 2 x", times <= 2),
            Target(f"lines {lines:.0f}/s <= {LINES}/s", lines <= LINES),
            Target(f"memory grown by {grown:.1f} MB < {GROWN:g} MB", grown < GROWN),
            Target(f"lost {lost} = 0", not lost),
        ),
    )


SCENARIO = Scenario(
    "abuse",
    "Strangers do what they can",
    f"{STREAMS:,} honest streams get {RATE} events a second of 100 bytes. Others, each abuse from an address "
    "of its own, with the limits that a gateway has by default, send heads a byte at a time, nothing at all, "
    "heads and bodies without an end, bombs (64 MiB in 64 KB), what is no HTTP, hidden requests and "
    "forged ids and answers, or connect and go: bench/abuses.py. Halves of "
    f"{PHASE:.0f} s without and with, {ROUNDS} rounds, medians (times: of their ratios). % of a core is what "
    "the abuse cost the gateway; lines/s are those of the log at level info, in the worst round; grown is "
    "from the end of the first round to that of the last.",
    measure,
    limit=500,
)
