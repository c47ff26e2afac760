"""A herd that comes back: thousands of clients resume at once, each from an id of its own, through Redis."""

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import redis

from bench.kept_alive import KeptAlive
from bench.load import load
from bench.process import gateway, redis_server
from bench.scenarios.base import Options, Row, Scenario, Target

CLIENTS = 5000
EVENTS = 400
"""Events in the history; each client missed up to half of them."""

_PATHS = 200
"""Resume points that the clients are spread over."""


def measure(options: Options) -> Iterator[Row]:
    """Let the herd come once."""
    clients = options.pick(CLIENTS, _PATHS)
    with redis_server() as server:
        config: dict[str, Any] = {
            "broker": {"url": f"redis://127.0.0.1:{server}"},
            "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
            "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
        }
        with gateway(config) as (_, port, _):
            ids = _fill(port)
        # Its ring holds what is young; a node that was just started, or another one, holds nothing.
        with gateway(config) as (process, port, _), redis.Redis(port=server) as client:
            missed = [random.randrange(1, EVENTS // 2) for _ in range(_PATHS)]
            targets = [f"/events/orders\tLast-Event-ID: {ids[-1 - number]}" for number in missed]
            expected = sum(missed) * (clients // _PATHS)
            idle = _commands_per_second(client)
            before, cpu, started = _commands(client), process.cpu(), time.monotonic()
            with load(port, targets, clients) as herd:
                opened = herd.open()
                herd.expect_in_all(expected)
                answer, stats = herd.arrived(), herd.stats()
                seconds = max(answer.at, opened.at) - started
                commands = _commands(client) - before - round(idle * seconds)
                yield Row(
                    "sse-gateway",
                    1,
                    {
                        "clients": opened.live,
                        "events replayed": answer.events,
                        "Redis commands": commands,
                        "all live after s": seconds,
                        "CPU us per client": (process.cpu() - cpu) / clients * 1e6,
                    },
                    (
                        Target(f"Redis commands {commands} < 100", commands < 100),
                        Target(
                            f"failed {sum(opened.failed.values())}, gaps {stats.gaps}, not delivered "
                            f"{expected - answer.events} = 0",
                            not opened.failed and not stats.gaps and answer.events == expected,
                        ),
                    ),
                )


def _fill(port: int) -> list[str]:
    hook = KeptAlive(port)
    ids: list[str] = []
    for number in range(EVENTS // 20):
        body = json.dumps([{"order": number, "text": "x" * 80}] * 20)
        ids += json.loads(hook.post("/hooks/hooks?topic=orders", body.encode()))["ids"]
    hook.close()
    return ids


def _commands(client: "redis.Redis") -> int:
    return int(client.info("stats")["total_commands_processed"])


def _commands_per_second(client: "redis.Redis") -> float:
    before = _commands(client)
    time.sleep(3)
    return (_commands(client) - before) / 3


SCENARIO = Scenario(
    "redis-herd",
    "A herd resumes at once, log in Redis",
    f"{CLIENTS:,} clients come to a node that holds none of what they missed: each up to {EVENTS // 2} of "
    f"{EVENTS} "
    "events. Redis' own count of commands, those inside of scripts too, less what an idle gateway sends.",
    measure,
    limit=90,
)
