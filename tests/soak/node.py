"""``python -m tests.soak.node REPORT CACHES run …``: the gateway's command, which reports its containers on SIGUSR2.

CACHES replaces the bounds of the caches that fill up with what clients send; 0 leaves them as they are.
"""

import asyncio
import functools
import gc
import json
import signal
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.soak.caches import CACHES
from tests.soak.containers import sizes, weigh

TIMES = (
    ("gateway.broker.redis.event_log", "IDLE_CHANNEL_TTL_MS", 5000),
    ("gateway.broker.sqlite.event_log", "IDLE_CHANNEL_TTL_MS", 5000),
    ("gateway.sources.redis.recent_messages", "TAKEOVER_RETENTION_SECONDS", 5.0),
)
"""What is kept for a time, with a shorter one where the caches are bounded."""

WEIGHED = 100
"""Entries from which on a container's bytes are reported."""


def report(file: Path) -> None:
    """Write what this process holds, as one change of the file."""
    gc.collect()
    kinds = Counter(
        f"{type(each).__module__}.{type(each).__qualname__}"
        for each in gc.get_objects()
        if type(each).__module__.startswith("gateway.")
    )
    held = {
        "containers": sizes("gateway"),
        "bytes": weigh("gateway", WEIGHED),
        "objects": kinds,
    }
    new = file.with_suffix(".new")
    new.write_text(json.dumps(held))
    new.replace(file)


def bound_lru_caches(bound: int) -> None:
    """Let the caches that are made with `functools.lru_cache` from now on hold no more than so many entries."""
    cached: Any = functools.lru_cache

    def bounded(maxsize: Any = 128, typed: bool = False) -> Any:
        return cached(min(maxsize, bound) if isinstance(maxsize, int) else maxsize, typed)

    setattr(functools, "lru_cache", bounded)  # noqa: B010 -- mypy takes no other type here


def main() -> None:
    """Set the bounds, install the signal's handler when the gateway starts, and run the command."""
    file, bound = Path(sys.argv.pop(1)), int(sys.argv.pop(1))
    if bound:
        bound_lru_caches(bound)
    for cache in CACHES if bound else ():
        setattr(import_module(cache.module), cache.bound, min(bound, cache.limit()))
    for module, name, value in TIMES if bound else ():
        assert hasattr(import_module(module), name), f"{module} has no {name}"
        setattr(import_module(module), name, value)
    from gateway.cli.main import main as command  # noqa: PLC0415 -- only now, with the bounds in place
    from gateway.server.daemon import Daemon  # noqa: PLC0415 -- same

    start = Daemon.start

    async def reporting(daemon: Daemon) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, report, file)
        await start(daemon)

    setattr(Daemon, "start", reporting)  # noqa: B010 -- mypy takes no assignment to a method
    sys.exit(command())


if __name__ == "__main__":
    main()
