"""A herd that comes back: thousands of clients resume at once, each from an id of its own, through Redis."""

import http.client
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import redis

from bench.process import clients, gateway, redis_server

CLIENTS = 5000
EVENTS = 400
"""Events in the history; each client missed up to half of them."""

_PATHS = 200
"""Resume points that the clients are spread over."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the herd cost."""

    seconds: float
    """From the first connection until the last missed event had arrived everywhere."""
    commands: int
    """That Redis counted meanwhile, those inside of scripts too; less what an idle gateway sends."""
    events: int


def measure() -> Result:
    """Let the herd come once."""
    with redis_server() as server:
        config: dict[str, Any] = {
            "broker": {"url": f"redis://127.0.0.1:{server}"},
            "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
            "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
        }
        with gateway(config) as (_, port, _), redis.Redis(port=server) as client:
            ids = _fill(port)
        # Its ring holds what is young; a node that was just started, or another one, holds nothing.
        with gateway(config) as (_, port, _), redis.Redis(port=server) as client:
            missed = [random.randrange(1, EVENTS // 2) for _ in range(_PATHS)]
            paths = [f"/events/orders?lastEventId={ids[-1 - number]}" for number in missed]
            # The first block of every stream is its stream.open.
            expected = CLIENTS + sum(missed) * (CLIENTS // _PATHS)
            idle = _commands_per_second(client)
            before, started = _commands(client), time.monotonic()
            with clients(port, CLIENTS, *paths) as herd:
                early = int(herd.answer().split()[2])
                if early < expected:
                    herd.tell(f"await {expected - early}")
                    answer = herd.answer()
                    if not answer.startswith("got"):
                        raise RuntimeError(f"not everything arrived: {answer} of {expected - early}")
                seconds = time.monotonic() - started
                commands = _commands(client) - before - round(idle * seconds)
            return Result(seconds, commands, expected - CLIENTS)


def _fill(port: int) -> list[str]:
    hook = http.client.HTTPConnection("127.0.0.1", port)
    ids: list[str] = []
    for number in range(EVENTS // 20):
        body = json.dumps([{"order": number, "text": "x" * 80}] * 20)
        hook.request("POST", "/hooks/hooks?topic=orders", body)
        ids += json.loads(hook.getresponse().read())["ids"]
    hook.close()
    return ids


def _commands(client: "redis.Redis") -> int:
    return int(client.info("stats")["total_commands_processed"])


def _commands_per_second(client: "redis.Redis") -> float:
    before = _commands(client)
    time.sleep(3)
    return (_commands(client) - before) / 3
