"""Large events."""

import statistics
from collections.abc import Iterator

from bench.load import load
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, all_delivered
from bench.servers import MissingError, Server, Setup, label, run

BYTES = 64 * 1024
STREAMS = 500
EVENTS = 20
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


def measure(options: Options) -> Iterator[Row]:
    """Send them on one server after the other."""
    for name, workers in CONTENDERS:
        try:
            with run(name, Setup(), workers=workers) as server:
                yield _row(server, options, name == "gateway")
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _row(server: Server, options: Options, is_ours: bool) -> Row:
    streams, events = options.pick(STREAMS, 50), options.pick(EVENTS, 3)
    server.expect_streams(streams)
    with load(server.port, [server.target("orders")], streams) as clients:
        opened = clients.open(ahead=server.ahead)
        server.streams_are_open()
        p50, p99, costs, longest, missing = [], [], [], 0.0, 0
        for number in range(events + 1):
            clients.reset()
            clients.expect(1, seconds=10)
            cpu = server.cpu()
            server.publish("orders", [payload(BYTES)])
            answer = clients.arrived()
            if number:
                latency = clients.stats().latency
                missing += clients.live - answer.events
                costs.append((server.cpu() - cpu) / max(1, answer.events) * 1e6)
                p50.append(latency.percentile(0.5) * 1e3)
                p99.append(latency.percentile(0.99) * 1e3)
                longest = max(longest, latency.longest * 1e3)
        return Row(
            server.name,
            server.workers,
            {
                "CPU us per delivery": statistics.median(costs),
                "p50 ms": statistics.median(p50),
                "p99 ms": statistics.median(p99),
                "longest ms": longest,
                "not delivered": missing,
            },
            (all_delivered(sum(opened.failed.values()), missing),) if is_ours else (),
            f"failed: {opened.failed}" if opened.failed else "",
        )


SCENARIO = Scenario(
    "large",
    f"Events of 64 KB to {STREAMS} streams",
    f"{EVENTS} events, each once the one before has arrived everywhere; medians over events. An event "
    "counts when its "
    "last byte was read.",
    measure,
)
