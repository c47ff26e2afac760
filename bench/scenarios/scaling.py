"""Two workers against one, and sixty thousand streams on four."""

import os
import statistics
import time
from collections.abc import Iterator

from bench.load import load
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, Target, all_delivered, at_least
from bench.servers import MissingError, Server, Setup, label, run

STREAMS = 15_000
EVENTS = 40
ROUNDS = 3

MANY = 60_000
WORKERS = 4
BROADCASTS = 5


def measure(options: Options) -> Iterator[Row]:
    """Saturate each server, in alternating rounds."""
    streams = options.pick(STREAMS, 200)
    rates: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], list[float]] = {}
    clients_costs: dict[tuple[str, int], list[float]] = {}
    for number in range(options.pick(ROUNDS, 1)):
        for name in ("gateway", "nchan"):
            for workers in (1, 2):
                try:
                    with run(name, Setup(), workers=workers) as server:
                        rate, cost, client = _saturate(server, streams, options.pick(EVENTS, 5))
                except MissingError as missing:
                    if not number:
                        yield Row(label(name), workers, note=str(missing))
                    continue
                rates.setdefault((name, workers), []).append(rate)
                costs.setdefault((name, workers), []).append(cost)
                clients_costs.setdefault((name, workers), []).append(client)
    for (name, workers), each in rates.items():
        rate, note = statistics.median(each), ""
        targets: tuple[Target, ...] = ()
        if workers == 2 and (name, 1) in rates:
            times = rate / statistics.median(rates[name, 1])
            cores = os.cpu_count() or 1
            if name == "gateway" and cores >= 4:
                targets = (at_least("deliveries/s", times, 1.8, " x one worker"),)
            else:
                note = f"{times:.2f} x one worker"
                note += f"; the load client shares the {cores} cores" if cores < 4 else ""
        yield Row(
            label(name),
            workers,
            {
                "deliveries/s": rate,
                "CPU us per delivery": statistics.median(costs[name, workers]),
                "client's CPU us": statistics.median(clients_costs[name, workers]),
            },
            targets,
            note,
        )


def _saturate(server: Server, streams: int, events: int) -> tuple[float, float, float]:
    """Return deliveries a second, and the CPU per delivery in us of the server and the client."""
    with load(server.port, [server.target("orders")], streams) as clients:
        clients.open_all(ahead=server.ahead)
        clients.reset()
        started = cpu = client = 0.0
        server.publish("orders", [payload()])
        for number in range(events + 1):
            clients.expect(number + 1)
            if number < events:
                server.publish("orders", [payload()])  # while the one before is on its way
            if not clients.arrived().complete:
                raise RuntimeError(f"{server} did not deliver everything")
            if not number:
                started, cpu, client = time.monotonic(), server.cpu(), clients.cpu()
        seconds, deliveries = time.monotonic() - started, events * clients.live
        return (
            deliveries / seconds,
            (server.cpu() - cpu) / deliveries * 1e6,
            (clients.cpu() - client) / deliveries * 1e6,
        )


def measure_many(options: Options) -> Iterator[Row]:
    """Open as many streams as four workers hold."""
    for name in ("gateway", "nchan"):
        try:
            with run(name, Setup(heartbeat=600), workers=WORKERS) as server:
                yield _many(server, options.pick(MANY, 400), name == "gateway")
        except MissingError as missing:
            yield Row(label(name), WORKERS, note=str(missing))


def _many(server: Server, streams: int, is_ours: bool) -> Row:
    before = server.pss()
    with load(server.port, [server.target("orders")], streams, processes=4) as clients:
        cpu, started = server.cpu(), time.monotonic()
        opened = clients.open(ahead=200, seconds=120)
        handshake = (server.cpu() - cpu) / streams * 1e6
        time.sleep(2)
        memory, p50, p99, longest, missing = server.pss(), [], [], 0.0, 0
        for number in range(BROADCASTS + 1):
            clients.reset()
            clients.expect(1)
            server.publish("orders", [payload()])
            answer = clients.arrived()
            missing += clients.live - answer.events
            if number:
                latency = clients.stats().latency
                p50.append(latency.percentile(0.5) * 1e3)
                p99.append(latency.percentile(0.99) * 1e3)
                longest = max(longest, latency.longest * 1e3)
        failed = sum(opened.failed.values())
        ours = (all_delivered(failed, missing),)
        return Row(
            server.name,
            server.workers,
            {
                "streams": opened.live,
                "all live after s": opened.at - started,
                "CPU us per handshake": handshake,
                "PSS MB in all": memory / 2**20,
                "PSS KB per stream": (memory - before) / max(1, opened.live) / 1024,
                "p50 ms": statistics.median(p50),
                "p99 ms": statistics.median(p99),
                "longest ms": longest,
            },
            ours if is_ours else (),
            f"failed: {opened.failed}" if failed else "",
        )


SCENARIO = Scenario(
    "workers",
    "Two workers against one",
    f"{STREAMS:,} streams and {EVENTS} events of 100 bytes, two of them on their way at any time, so that "
    f"somebody is always busy; medians of {ROUNDS} rounds in turns, each on a fresh server. Two workers "
    "can be twice as fast where the load client does not need their cores.",
    measure,
)

MANY_SCENARIO = Scenario(
    "sixty-thousand",
    f"{MANY:,} streams on {WORKERS} workers",
    f"Four load processes open 15,000 each, at most 200 handshakes of each under way; then {BROADCASTS} "
    "events of 100 "
    "bytes, one after the other; medians over events.",
    measure_many,
)
