"""How soon the probes are answered while many streams get a broadcast."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.load import PER_PROCESS, Load, load
from bench.paced import Paced
from bench.payload import payload
from bench.process import Process, running
from bench.scenarios.base import Options, Row, Scenario, Target, at_most
from bench.servers import Setup, run
from bench.servers.gateway import Gateway

STREAMS = 15_000
EVERY = 0.25
"""Seconds between two broadcasts: one worker needs most of that for one."""

SECONDS = 15
RATE = 20
"""Probes a second of each path: a hundred times what balancers send, so that no pause goes unseen."""

PROBES = ("/healthz", "/readyz")
SCRAPES = ("/metrics",)
LIMIT_MS = 100.0


def measure(options: Options) -> Iterator[Row]:
    """Probe one and two workers, without and with broadcasts."""
    streams, seconds = options.pick(STREAMS, 200), options.pick(SECONDS, 1)
    assert streams <= PER_PROCESS
    for workers in (1, 2):
        # Heartbeats would be broadcasts of their own.
        with (
            run("gateway", Setup(heartbeat=600), workers=workers) as server,
            load(server.port, [server.target("orders")], streams) as clients,
        ):
            assert isinstance(server, Gateway)
            clients.open_all()
            yield from _rows(server, clients, seconds)


def _rows(server: Gateway, clients: Load, seconds: int) -> Iterator[Row]:
    command = [sys.executable, "-m", "bench.prober", str(server.admin)]
    with (
        running(*command, str(RATE), *PROBES, stderr=None) as prober,
        running(*command, "1", *SCRAPES, stderr=None) as scraper,
    ):
        prober.answer()
        scraper.answer()
        calm = _ask(prober, seconds)
        clients.reset()
        scraper.tell(str(seconds))
        with Paced(
            lambda group: server.publish("orders", group),
            payload, rate=1 / EVERY, group=1, events=round((seconds + 1) / EVERY),
        ) as paced:  # fmt: skip
            time.sleep(2 * EVERY)
            busy = _ask(prober, seconds)
            paced.wait(10)
        scraped = json.loads(scraper.answer())
        clients.expect(paced.published, seconds=30)
        arrived = clients.arrived()
    lag = 1000 * server.metric("loop_lag_seconds")
    missing = 0 if arrived.complete else paced.published * clients.live - arrived.events
    for path in (*PROBES, *SCRAPES):
        told = (busy if path in PROBES else scraped)[path]
        times = sorted(1000 * each for each in told["times"])
        yield Row(
            server.name,
            server.workers,
            {
                "path": path,
                "asked": len(times),
                "calm: p99 ms": _percentile(calm[path]["times"], 0.99) * 1000 if path in calm else "",
                "p50 ms": _percentile(times, 0.5),
                "p99 ms": _percentile(times, 0.99),
                "longest ms": times[-1],
                "broadcasts/s": paced.rate,
                "loop's lag ms": lag,
            },
            _targets(times, told["odd"], missing) if path in PROBES else (),
        )


def _targets(times: list[float], odd: int, missing: int) -> tuple[Target, ...]:
    return (
        at_most("longest", times[-1], LIMIT_MS, " ms"),
        Target(f"not 200: {odd}, deliveries missing: {missing}", not odd and not missing),
    )


def _ask(prober: Process, seconds: int) -> dict[str, Any]:
    prober.tell(str(seconds))
    told: dict[str, Any] = json.loads(prober.answer())
    return told


def _percentile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


SCENARIO = Scenario(
    "health",
    f"Probes while {STREAMS:,} streams get a broadcast",
    f"An event of 100 bytes to {STREAMS:,} streams every {EVERY * 1000:.0f} ms for {SECONDS} s. Meanwhile "
    f"/healthz and /readyz are asked {RATE} times a second each, on new connections, and /metrics once a "
    "second. A time goes from before connect() to the end of the answer; calm is without broadcasts. "
    "With two workers the parent answers, and asks both. The loop's lag is what the gateway measures itself.",
    measure,
)
