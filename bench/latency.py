"""From a Redis PUBLISH to the clients' sockets: through the source, the log in Redis, and the fan-out."""

import time
from dataclasses import dataclass
from typing import Any

import redis

from bench.process import clients, gateway, redis_server

STREAMS = 1000
EVENTS = 100
PAUSE = 0.02
"""Seconds between two events: each travels alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds from the PUBLISH to an event's arrival, over all events and streams."""

    p50: float
    p99: float
    longest: float


def measure() -> Result:
    """Publish stamped events to one gateway with all streams."""
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
            clients(port, STREAMS, "/events/orders") as streams,
        ):
            streams.answer()
            streams.tell(f"stamps {STREAMS * EVENTS}")
            for _ in range(EVENTS):
                client.publish("orders", f'{{"t":{time.monotonic_ns()}}}')
                time.sleep(PAUSE)
            answer = streams.answer()
            if not answer.startswith("got"):
                raise RuntimeError(f"not everything arrived: {answer}")
            p50, p99, longest = (float(part) for part in answer.split()[1:])
            return Result(p50, p99, longest)
