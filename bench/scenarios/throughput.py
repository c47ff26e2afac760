"""A steady rate of events to many streams."""

from collections.abc import Iterator

from bench.load import load
from bench.paced import Paced
from bench.payload import payload
from bench.scenarios.base import Options, Row, Scenario, Target, all_delivered, at_most
from bench.servers import MissingError, Server, Setup, label, run

STREAMS = 2000
RATE = 1000
SECONDS = 10
GROUP = 20
"""Events that are published together, every 20 ms."""

BEHIND = 5.0
"""Seconds that a publisher which cannot keep the rate may go on."""

LATE = 10.0
"""Seconds that the last event may take."""

ROUNDS = 3

_IN_EACH_ROUND = ("gateway", "nchan")
"""The others come once: theirs is no close race."""

CONTENDERS = (
    ("gateway", 1),
    ("gateway", 2),
    ("nchan", 1),
    ("nchan", 2),
    ("sse_starlette", 1),
    ("aiohttp_sse", 1),
    ("pushpin", 1),
)


def measure(options: Options) -> Iterator[Row]:
    """Put the rate on one server after the other."""
    for name, workers in CONTENDERS:
        try:
            rounds = options.pick(ROUNDS, 1) if name in _IN_EACH_ROUND else 1
            rows = []
            for _ in range(rounds):
                with run(name, Setup(history=10_000), workers=workers) as server:
                    rows.append(_row(server, name == "gateway", options))
            # One with something missing is not left out.
            rows.sort(key=lambda row: (row.figures["delivered %"] == 100, row.figures["p99 ms"]))
            yield rows[0] if rows[0].figures["delivered %"] != 100 else rows[len(rows) // 2]
        except MissingError as missing:
            yield Row(label(name), workers, note=str(missing))


def _row(server: Server, is_ours: bool, options: Options) -> Row:
    streams, events = options.pick(STREAMS, 50), RATE * options.pick(SECONDS, 1)
    with load(server.port, [server.target("orders")], streams) as clients:
        opened = clients.open(ahead=server.ahead)
        server.publish("orders", [payload()])
        clients.expect(1)
        clients.arrived()
        clients.reset()
        cpu, client = server.cpu(), clients.cpu()
        with Paced(
            lambda group: server.publish("orders", group), payload, rate=RATE, group=GROUP, events=events
        ) as paced:
            paced.wait(events / RATE + BEHIND)
        clients.expect(paced.published, seconds=LATE)
        answer, stats = clients.arrived(), clients.stats()
        wanted = paced.published * clients.live
        cpu_us = (server.cpu() - cpu) / max(1, answer.events) * 1e6
        p99 = stats.latency.percentile(0.99) * 1e3
        targets: tuple[Target, ...] = ()
        if is_ours:
            targets = (
                all_delivered(sum(opened.failed.values()), wanted - answer.events),
                at_most("CPU", cpu_us, 0.6, " us"),
                at_most("p99", p99, 60, " ms"),
            )
        lost = f"{stats.lost} streams lost" if stats.lost else ""
        failed = f"failed: {opened.failed}" if opened.failed else ""
        note = "; ".join(part for part in (paced.error, failed, lost) if part)
        return Row(
            server.name,
            server.workers,
            {
                "published/s": paced.rate,
                "delivered %": 100 * answer.events / max(1, wanted),
                "CPU us per delivery": cpu_us,
                "p50 ms": stats.latency.percentile(0.5) * 1e3,
                "p99 ms": p99,
                "longest ms": stats.latency.longest * 1e3,
                "client's CPU us": (clients.cpu() - client) / max(1, answer.events) * 1e6,
            },
            targets,
            note,
        )


SCENARIO = Scenario(
    "throughput",
    f"{RATE:,} events a second to {STREAMS:,} streams",
    f"For {SECONDS} s, events of 100 bytes, {GROUP} at a time every {GROUP / RATE * 1e3:.0f} ms: as one "
    "array, in lines or as items where the server takes several in a request; to nchan as single posts "
    "over eight kept-alive connections. A post is sent when the one before is answered. The CPU of "
    f"taking events in is part of the figure. Whoever falls behind has {BEHIND:.0f} s more to take the "
    f"events and {LATE:.0f} s more to deliver them; what did not arrive then is missing. Of {ROUNDS} runs "
    "the one with the median p99 (one run for those beside the gateway and nchan).",
    measure,
)
