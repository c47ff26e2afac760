"""From a Redis PUBLISH to the clients' sockets: through the source, the log in Redis, and the fan-out."""

import time
from collections.abc import Iterator
from typing import Any

import redis

from bench.load import load
from bench.payload import payload
from bench.process import gateway, redis_server
from bench.scenarios.base import Options, Row, Scenario, all_delivered

STREAMS = 1000
EVENTS = 100
PAUSE = 0.02
"""Seconds between two events: each travels alone."""


def measure(options: Options) -> Iterator[Row]:
    """Publish stamped events to one gateway with all streams."""
    streams, events = options.pick(STREAMS, 50), options.pick(EVENTS, 10)
    with redis_server() as server:
        url = f"redis://127.0.0.1:{server}"
        config: dict[str, Any] = {
            "broker": {"url": url},
            "sources": {"app": {"type": "redis-pubsub", "url": url}},
            "channels": {"orders": {"from": [{"source": "app", "topic": "orders"}], "access": "public"}},
        }
        with (
            gateway(config) as (_, port, _),
            redis.Redis(port=server) as client,
            load(port, ["/events/orders"], streams) as clients,
        ):
            clients.open_all()
            clients.reset()
            clients.expect(events)
            for _ in range(events):
                client.publish("orders", payload())
                time.sleep(PAUSE)
            answer = clients.arrived()
            latency = clients.stats().latency
            yield Row(
                "sse-gateway",
                1,
                {
                    "streams": streams,
                    "p50 ms": latency.percentile(0.5) * 1e3,
                    "p99 ms": latency.percentile(0.99) * 1e3,
                    "longest ms": latency.longest * 1e3,
                },
                (all_delivered(0, streams * events - answer.events),),
            )


SCENARIO = Scenario(
    "redis-latency",
    "Redis PUBLISH to sockets, log in Redis",
    f"{EVENTS} events, one every {PAUSE * 1e3:.0f} ms, from a Redis PUBLISH through the source, the log "
    "in Redis and "
    f"the fan-out to {STREAMS:,} streams. Latency goes from before the PUBLISH to the client's read.",
    measure,
    limit=60,
)
