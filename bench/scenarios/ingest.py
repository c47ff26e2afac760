"""What comes in: webhook records, and Redis stream entries to one client; per second, and their CPU."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from bench.load import Load, load
from bench.process import gateway, redis_server, running
from bench.scenarios.base import Figure, Options, Row, Scenario, at_least

ENTRIES = 100_000
"""Entries of the stream, each of about 100 bytes."""

SINGLE_POSTS = 10_000
BATCHES = 200
BATCH = 500
CONNECTIONS = 32

_PAYLOAD = {"order": 4711, "customer": "7f3a9c", "total": 12.5, "state": "created", "note": "x" * 20}


def measure(options: Options) -> Iterator[Row]:
    """Measure each way with each log."""
    for log in ("memory", "SQLite", "Redis"):
        yield _stream(log, options.pick(ENTRIES, 2000))
        yield _posts("webhook, single posts", log, options.pick(SINGLE_POSTS, 200), 1)
        yield _posts(f"webhook, batches of {BATCH}", log, options.pick(BATCHES, 64), BATCH)


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


def _stream(log: str, entries: int) -> Row:
    """From a stream that has all entries at once, to the socket of one client."""
    payload = json.dumps(_PAYLOAD)
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as server,
        redis.Redis(port=server) as client,
        gateway(_config(log, folder, server)) as (process, port, _),
        load(port, ["/events/orders"], 1) as stream,
    ):
        stream.open_all()
        first_id = client.xadd("orders", {"payload": '"first"'})
        stream.expect(1)
        _all_of(stream)
        client.xadd("staged", {"payload": '"first"'}, id=first_id)
        for first in range(0, entries, 1000):
            pipe = client.pipeline(transaction=False)
            for number in range(first, min(first + 1000, entries)):
                pipe.xadd("staged", {"payload": payload, "type": "order.created", "n": number})
            pipe.execute()
        stream.expect(1 + entries)
        cpu, started = process.cpu(), time.monotonic()
        # All of them appear at once, so whoever adds them takes nobody's core meanwhile.
        client.rename("staged", "orders")
        seconds = _all_of(stream) - started
        rate = entries / seconds
        return _row("Redis stream to one client", log, rate, (process.cpu() - cpu) / entries, 20_000)


def _posts(way: str, log: str, posts: int, records: int) -> Row:
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
            return _row(way, log, count / seconds, (process.cpu() - cpu) / count)


def _row(way: str, log: str, rate: float, cpu: float, least: float = 0) -> Row:
    figures: dict[str, Figure] = {"way": way, "log": log, "events/s": rate, "CPU us per event": cpu * 1e6}
    return Row("sse-gateway", 1, figures, (at_least("events/s", rate, least),) if least else ())


def _all_of(stream: Load) -> float:
    answer = stream.arrived()
    if not answer.complete:
        raise RuntimeError(f"not everything arrived: {answer}")
    return answer.at


SCENARIO = Scenario(
    "ingest",
    "What comes in, by each way and with each log",
    f"{ENTRIES:,} entries of a Redis stream that are there all at once, to the socket of one client; and "
    "posts of "
    f"{CONNECTIONS} connections, each with the next once the last is answered. Events of about 100 bytes.",
    measure,
    limit=180,
)
