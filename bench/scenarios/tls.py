"""Handshakes and fan-out over TLS."""

import statistics
import time
from collections.abc import Iterator

from bench import build
from bench.load import load
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, all_delivered
from bench.servers import MissingError, Server, Setup, label, run

STREAMS = 5000
EVENTS = 20
AHEAD = 100
CONTENDERS = (("gateway", 1), ("nchan", 1), ("gateway", 2), ("nchan", 2))


def measure(options: Options) -> Iterator[Row]:
    """Take one server after the other."""
    for name, workers in CONTENDERS:
        if not build.has_tls():
            yield Row(label(name), workers, note="the load client needs libssl-dev")
            continue
        try:
            with run(name, Setup(tls=True), workers=workers) as server:
                yield _row(server, options, name == "gateway")
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _row(server: Server, options: Options, is_ours: bool) -> Row:
    streams, events = options.pick(STREAMS, 100), options.pick(EVENTS, 3)
    before = server.pss()
    with load(server.port, [server.target("orders")], streams, tls=True) as clients:
        cpu, started = server.cpu(), time.monotonic()
        opened = clients.open(ahead=AHEAD)
        handshake = (server.cpu() - cpu) / streams * 1e6
        memory = (server.pss() - before) / max(1, opened.live) / 1024
        p50, p99, costs, missing = [], [], [], 0
        for number in range(events + 1):
            clients.reset()
            clients.expect(1, seconds=10)
            cpu = server.cpu()
            server.publish("orders", [payload()])
            answer = clients.arrived()
            if number:
                latency = clients.stats().latency
                missing += clients.live - answer.events
                costs.append((server.cpu() - cpu) / max(1, answer.events) * 1e6)
                p50.append(latency.percentile(0.5) * 1e3)
                p99.append(latency.percentile(0.99) * 1e3)
            time.sleep(0.05)
        failed = sum(opened.failed.values())
        return Row(
            server.name,
            server.workers,
            {
                "CPU us per handshake": handshake,
                "all live after s": opened.at - started,
                "PSS KB per stream": memory,
                "CPU us per delivery": statistics.median(costs),
                "p50 ms": statistics.median(p50),
                "p99 ms": statistics.median(p99),
                "not delivered": missing,
            },
            (all_delivered(failed, missing),) if is_ours else (),
            f"failed: {opened.failed}" if failed else "",
        )


SCENARIO = Scenario(
    "tls",
    f"TLS to {STREAMS:,} streams",
    "TLS as both servers and OpenSSL agree on it (1.3, AES-256-GCM, a P-256 certificate, no resumption), "
    "at most "
    f"{AHEAD} handshakes under way; then {EVENTS} events of 100 bytes, each once the one before has arrived "
    "everywhere; medians over events.",
    measure,
)
