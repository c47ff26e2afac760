"""Appends per second of each broker, compared with the bare commands of its database.

Both sides append the same events with the same concurrency, in alternating rounds on one machine: 64 batches
at a time, as from 64 webhooks. The bare side uses the fastest form: all batches go into one pipeline of
XADDs with MAXLEN, or into one transaction of INSERTs that also deletes rows older than a log's minimum
retention. It has no order over channels, no history per channel, no deduplication, no offsets and no
followers.
"""

import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from redis.asyncio import Redis

from bench.process import redis_server
from bench.scenarios.base import Figure, Options, Row, Scenario, Target, at_most
from gateway.broker.base import Broker
from gateway.broker.memory import MemoryBroker
from gateway.broker.redis.broker import RedisBroker
from gateway.broker.sqlite.broker import SqliteBroker
from gateway.broker.sqlite.event_log import MIN_RETENTION_MS
from gateway.config.model.config import PoolConfig
from gateway.core.clock import unix_ms
from gateway.core.event import Draft, Retention

AT_ONCE = 64
"""Appends under way at the same time."""

BATCHES = (1, 10, 100)
"""Events per append."""

ROUNDS = 5
SECONDS = 0.7
"""Length of one side's turn in a round."""

CHANNELS = 16
KEEP = Retention(1000, 600_000)
PAYLOAD = b'{"order":1,"text":"' + b"x" * 79 + b'"}'

Turn = Callable[[], Awaitable[int]]
"""Appends `AT_ONCE` batches, and returns the number of events."""


def measure(options: Options) -> Iterator[Row]:
    """Measure all brokers with all batch sizes."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield from runner.run(_measure(options))


async def _measure(options: Options) -> list[Row]:
    rows = []
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"redis://127.0.0.1:{stack.enter_context(redis_server())}"
        redis = Redis.from_url(url, socket_timeout=10)
        stack.push_async_callback(redis.aclose)
        pool = PoolConfig.model_validate({})
        brokers: list[tuple[str, Broker, Callable[[int], Turn] | None]] = [
            ("memory", MemoryBroker(history_bytes=2**28, clock=unix_ms), None),
            ("SQLite", SqliteBroker(folder / "log.db", clock=unix_ms), _inserts(folder / "bare.db")),
            (
                "Redis",
                RedisBroker(url, prefix="sse", pool_limits=pool, timeout=10, clock=unix_ms),
                _xadds(redis),
            ),
        ]
        for name, broker, bare in brokers:
            await broker.start()
            stack.push_async_callback(broker.close)
            for batch in BATCHES:
                ours, theirs = _appends(broker, batch), bare(batch) if bare is not None else None
                rows.append(await _compare(name, batch, ours, theirs, options))
    return rows


async def _compare(name: str, batch: int, ours: Turn, bare: Turn | None, options: Options) -> Row:
    mine, theirs = [], []
    seconds = SECONDS / options.pick(1, 7)
    await _rate(ours, seconds / 2)  # warm-up
    for _ in range(options.pick(ROUNDS, 1)):
        mine.append(await _rate(ours, seconds))
        if bare is not None:
            theirs.append(await _rate(bare, seconds))
    figures: dict[str, Figure] = {"a batch": batch, "events/s": statistics.median(mine)}
    targets: tuple[Target, ...] = ()
    if theirs:
        ratio = statistics.median(theirs) / statistics.median(mine)
        figures |= {"bare events/s": statistics.median(theirs), "bare is faster by": ratio}
        targets = (at_most("bare faster by", ratio, 2, " x"),)
    return Row(f"log in {name}", None, figures, targets)


async def _rate(turn: Turn, seconds: float) -> float:
    started, events = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        events += await turn()
    return events / elapsed


def _appends(broker: Broker, batch: int) -> Turn:
    batches = [
        [Draft(f"c{number % CHANNELS}", PAYLOAD, 1763870000000, KEEP) for _ in range(batch)]
        for number in range(AT_ONCE)
    ]

    async def turn() -> int:
        await asyncio.gather(*(broker.append(drafts) for drafts in batches))
        return AT_ONCE * batch

    return turn


def _xadds(redis: Redis) -> Callable[[int], Turn]:
    def of(batch: int) -> Turn:
        async def turn() -> int:
            pipe = redis.pipeline(transaction=False)
            for number in range(AT_ONCE * batch):
                fields: dict[object, object] = {"payload": PAYLOAD, "timestamp": 1763870000000, "type": ""}
                pipe.xadd(f"bare{number // batch % CHANNELS}", fields, maxlen=1000, approximate=False)  # type: ignore[arg-type]
            await pipe.execute()
            return AT_ONCE * batch

        return turn

    return of


def _inserts(path: Path) -> Callable[[int], Turn]:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE events"
        " (id INTEGER PRIMARY KEY, channel INTEGER, timestamp INTEGER, type TEXT, payload BLOB)"
    )
    database.execute("CREATE INDEX by_channel ON events (channel, id)")

    inserted: deque[tuple[float, int]] = deque()

    def insert(batch: int) -> int:
        rows = [
            (number // batch % CHANNELS, 1763870000000, None, PAYLOAD) for number in range(AT_ONCE * batch)
        ]
        now = time.perf_counter()
        database.execute("BEGIN IMMEDIATE")
        database.executemany(
            "INSERT INTO events (channel, timestamp, type, payload) VALUES (?, ?, ?, ?)", rows
        )
        inserted.append((now, database.execute("SELECT max(id) FROM events").fetchone()[0]))
        while inserted and inserted[0][0] < now - MIN_RETENTION_MS / 1000:
            database.execute("DELETE FROM events WHERE id <= ?", (inserted.popleft()[1],))
        database.execute("COMMIT")
        return len(rows)

    def of(batch: int) -> Turn:
        async def turn() -> int:
            return await asyncio.to_thread(insert, batch)

        return turn

    return of


SCENARIO = Scenario(
    "append",
    "Appends to each log, against the bare commands of what it is built on",
    f"{AT_ONCE} appends at once, of 1, 10 and 100 events of 100 bytes; medians of {ROUNDS} alternating "
    "rounds. The bare side uses the fastest form, one pipeline of XADDs with MAXLEN or one transaction of "
    "INSERTs; it has no order over channels, no deduplication, no offsets and no followers.",
    measure,
    limit=120,
)
