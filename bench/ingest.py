"""What comes in: webhook records, and Redis stream entries to one client; per second, and their CPU."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from bench.process import Process, clients, gateway, redis_server, running

ENTRIES = 100_000
"""Entries of the stream, each of about 100 bytes."""

SINGLE_POSTS = 10_000
BATCHES = 200
BATCH = 500
CONNECTIONS = 32

_PAYLOAD = {"order": 4711, "customer": "7f3a9c", "total": 12.5, "state": "created", "note": "x" * 20}


@dataclass(frozen=True, slots=True)
class Result:
    """One way in."""

    way: str
    log: str
    per_second: float
    cpu_us: float
    """CPU of the gateway per event, all threads."""
    is_stream: bool = False


def measure() -> Iterator[Result]:
    """Measure each way with each log."""
    for log in ("memory", "SQLite", "Redis"):
        yield _stream(log)
        yield _posts("single posts", log, SINGLE_POSTS, 1)
        yield _posts(f"batches of {BATCH}", log, BATCHES, BATCH)


def _config(log: str, folder: str, server: int, **more: Any) -> dict[str, Any]:
    url = {
        "memory": "memory://",
        "SQLite": f"sqlite:///{folder}/log.db",
        "Redis": f"redis://127.0.0.1:{server}/1",
    }[log]
    return {
        "broker": {"url": url},
        "sources": {
            "orders": {"type": "redis-stream", "url": f"redis://127.0.0.1:{server}"},
            "hooks": {"type": "webhook", "verify": {"none": True}},
        },
        "channels": {
            "orders": {
                "from": [{"source": name, "topic": "orders"} for name in ("orders", "hooks")],
                "access": "public",
            }
        },
        **more,
    }


def _stream(log: str) -> Result:
    """From a stream that has all entries at once, to the socket of one client."""
    payload = json.dumps(_PAYLOAD)
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as server,
        redis.Redis(port=server) as client,
        gateway(_config(log, folder, server)) as (process, port, _),
        clients(port, 1, "/events/orders") as stream,
    ):
        stream.answer()
        first_id = client.xadd("orders", {"payload": '"first"'})
        stream.tell("await 1")
        _got(stream)
        client.xadd("staged", {"payload": '"first"'}, id=first_id)
        for first in range(0, ENTRIES, 1000):
            pipe = client.pipeline(transaction=False)
            for number in range(first, min(first + 1000, ENTRIES)):
                pipe.xadd("staged", {"payload": payload, "type": "order.created", "n": number})
            pipe.execute()
        stream.tell(f"await {ENTRIES}")
        cpu, started = process.cpu(), time.monotonic()
        # All of them appear at once, so whoever adds them takes nobody's core meanwhile.
        client.rename("staged", "orders")
        _got(stream)
        seconds = time.monotonic() - started
        return Result(
            "Redis stream to one client", log, ENTRIES / seconds, (process.cpu() - cpu) / ENTRIES * 1e6
        )


def _posts(way: str, log: str, posts: int, records: int) -> Result:
    body = json.dumps([_PAYLOAD] * records if records > 1 else _PAYLOAD)
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as server,
        gateway(_config(log, folder, server)) as (process, port, _),
    ):
        file = Path(folder) / "body.json"
        file.write_text(body)
        arguments = [str(port), "/hooks/hooks?topic=orders", str(CONNECTIONS), str(posts), str(file)]
        with running(sys.executable, "-m", "bench.poster", *arguments) as poster:
            poster.answer()
            cpu = process.cpu()
            poster.tell("go")
            seconds = float(poster.answer().split()[1])
            count = posts * records
            return Result(f"webhook, {way}", log, count / seconds, (process.cpu() - cpu) / count * 1e6)


def _got(stream: Process) -> None:
    answer = stream.answer()
    if not answer.startswith("got"):
        raise RuntimeError(f"not everything arrived: {answer}")


if __name__ == "__main__":
    for result in measure():
        print(f"{result.way:30} {result.log:8} {result.per_second:10,.0f}/s {result.cpu_us:8.1f} us")
