"""One soak: a gateway process under the load, looked at from outside and inside, and whether it stays flat."""

import asyncio
import json
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis

from tests.soak.caches import CACHES
from tests.soak.load import CHANNELS, Load, config
from tests.support.deadline import safety_net
from tests.support.node import Node
from tests.support.redis import RedisServer, redis_server

LOGS = ("memory", "sqlite", "redis")

GROWTH = 1.10
"""By how much a figure may be larger in the last third of a run than in the second."""

SLACK_SECONDS = 10
"""Seconds of visits by which a count may be larger besides: what is under way at a moment varies."""

LEAST = 60
"""Counts that never reach this are left out of the table."""

FILLING = frozenset(
    {
        *(f"container {cache.container}" for cache in CACHES),
        # Addresses: they fill up to their bound and are then cleared of idle ones at once.
        "objects gateway.streams.quotas.address_quotas.AddressUsage",
        "objects gateway.core.token_bucket.TokenBucket",
    }
)
"""Caches, and what is in them: those may grow, up to the bound of a cache."""

SLACK_MEMORY = 8 << 20
"""Bytes likewise, for the allocator."""

COMPACTED = {"container gateway.core.history._ChannelHistory.items": 512 * len(CHANNELS)}
"""Lists whose dropped entries are cleared away now and then, and by how much one may be larger for that."""

SAMPLES = 18
"""Looks at the gateway while the load runs; a third of them each for warm-up, middle and end."""

MEMORY = "memory, bytes (PSS)"


@dataclass
class Soak:
    """What a run showed: each figure, once for each look."""

    log: str
    minutes: float
    steady: int
    rate: float
    caches: int
    series: dict[str, list[int]] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    """The figures a while after the load ended."""
    bytes: dict[str, int] = field(default_factory=dict)
    """About how much the larger containers take at the end of the load."""
    done: Counter[str] = field(default_factory=Counter)

    def middle(self, name: str) -> int:
        """The largest of the second third of a run."""
        third = len(self.series[name]) // 3
        return max(self.series[name][third : 2 * third])

    def end(self, name: str) -> int:
        """The largest of the last third."""
        return max(self.series[name][-(len(self.series[name]) // 3) :])

    def is_flat(self, name: str) -> bool:
        """Whether a figure stays no larger after the last third than in the second, but for filling caches."""
        slack = SLACK_MEMORY if name == MEMORY else SLACK_SECONDS * self.rate + COMPACTED.get(name, 0)
        # What is gone once the load has ended was under way, as a busy machine is late with it.
        least = min(self.end(name), self.idle.get(name, 0))
        is_larger = least > self.middle(name) * GROWTH + slack
        return not is_larger or (name in FILLING and self.end(name) <= self.caches * GROWTH)

    @property
    def growing(self) -> list[str]:
        """The figures that are not flat."""
        return [name for name in self.series if not self.is_flat(name)]


async def soak(
    log: str, folder: Path, *, minutes: float, steady: int, rate: float, caches: int, idle: float
) -> Soak:
    """Run a gateway under the load. ``caches`` as of `tests.soak.node`; ``idle`` is in seconds."""
    with redis_server() as upstream, redis_server() as shared:
        urls = {"memory": "memory://", "sqlite": f"sqlite:///{folder}/log.db", "redis": shared.url}
        report = folder / "report.json"
        node = Node(folder, config(urls[log], upstream.url), "tests.soak.node", str(report), str(caches))
        found = Soak(log, minutes, steady, rate, caches)
        looks = _Looks(node, report, folder / "log.db" if log == "sqlite" else None, shared)
        redis = Redis.from_url(upstream.url)
        try:
            await node.start()
            load = Load(node.port, redis, steady=steady, rate=rate, luck=random.Random(1))
            running = asyncio.create_task(load.run())
            for number in range(SAMPLES):
                await asyncio.sleep(minutes * 60 / SAMPLES)
                assert not running.done(), running
                for name, value in (await looks.take()).items():
                    found.series.setdefault(name, [0] * number).append(value)
                for values in found.series.values():
                    values += [0] * (number + 1 - len(values))
            found.bytes = looks.bytes
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            found.done = load.done
            await asyncio.sleep(idle)
            found.idle = await looks.take()
            await node.stop()
        finally:
            await node.kill()
            await redis.aclose()
    return found


class _Looks:
    """Looks at a gateway: its process, its containers, and its log."""

    def __init__(self, node: Node, report: Path, database: Path | None, shared: RedisServer) -> None:
        self._node = node
        self._report = report
        self._database = database
        self._shared = shared
        self.bytes: dict[str, int] = {}

    async def take(self) -> dict[str, int]:
        """Return all figures of this moment."""
        self._report.unlink(missing_ok=True)
        self._node.signal(signal.SIGUSR2)
        async with safety_net():
            while not self._report.exists():
                await asyncio.sleep(0.01)
        held = json.loads(self._report.read_text())
        self.bytes = held["bytes"]
        figures = {MEMORY: pss(self._node.pid), "descriptors": _descriptors(self._node.pid)}
        figures |= {f"container {name}": count for name, count in held["containers"].items()}
        figures |= {f"objects {name}": count for name, count in held["objects"].items()}
        if self._database is not None:
            figures |= {f"table {name}": count for name, count in rows(self._database).items()}
        return figures | {f"Redis {name}": count for name, count in keys(self._shared).items()}


def pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _descriptors(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def rows(file: Path) -> dict[str, int]:
    """Return the rows of every table of a database."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # nothing of a stranger's
            for name in names
            if not name.startswith("sqlite_")
        }


def keys(server: RedisServer) -> dict[str, int]:
    """Return how many keys of each kind a log has, and how much each of its hashes holds."""
    found: Counter[str] = Counter()
    with closing(server.client()) as client:
        for key in client.scan_iter(count=1000):
            name = key.decode().rpartition("}")[2].lstrip(":")
            kind, colon, _ = name.partition(":")
            found[f"keys {kind}:…" if colon else f"key {kind}"] += 1
            if client.type(key) == b"hash":
                found[f"fields of {name}"] += client.hlen(key)
    return dict(found)


def table(found: Soak) -> str:
    """Return a run as a table in Markdown: what is in it at all, with the figures that grew first."""
    head = (
        f"### `{found.log}`, {found.minutes:g} minutes\n\n"
        f"{found.steady} steady streams; {found.rate:g} times a second one visit of each kind: "
        f"{', '.join(f'{count} {kind}' for kind, count in sorted(found.done.items()))}.\n\n"
        "| | warmed up | at the end | idle | about KB at the end |\n|---|---|---|---|---|\n"
    )
    lines = []
    shown = [name for name in found.series if not name.startswith("objects ") or not found.is_flat(name)]
    for name in sorted(shown, key=lambda name: (found.is_flat(name), name != MEMORY, name)):
        if name != MEMORY and max(found.end(name), found.middle(name)) < LEAST:
            continue
        size = found.bytes.get(name.removeprefix("container "))
        mark = "" if found.is_flat(name) else " **grows**"
        weight = "" if size is None else f"{size >> 10:,}"
        figures = f"{found.middle(name):,} | {found.end(name):,} | {found.idle.get(name, 0):,}"
        lines.append(f"| `{name}`{mark} | {figures} | {weight} |\n")
    return head + "".join(lines)


def caches(runs: Sequence[Soak]) -> str:
    """Return what the caches take when they are full, in Markdown: from the bytes of an entry in these runs."""
    lines = ["| cache of | entries | bytes an entry | MB when full |\n|---|---|---|---|\n"]
    for cache in CACHES:
        label = f"container {cache.container}"
        weighed = [
            found.bytes[cache.container] / found.series[label][-1]
            for found in runs
            if found.bytes.get(cache.container) and found.series.get(label, [0])[-1]
        ]
        if weighed:
            each = max(weighed)
            full = each * cache.limit() / 1e6
            lines.append(f"| {cache.holds} | {cache.limit():,} | {each:,.0f} | {full:.1f} |\n")
    return "".join(lines)


def now() -> str:
    """Return the day, for the report."""
    return time.strftime("%Y-%m-%d")
