"""``python -m tests.soak.node REPORT CACHES run …``: the gateway's command, which reports its containers on SIGUSR2.

CACHES replaces the bounds of the caches that fill up with what clients send; 0 leaves them as they are.
"""

import asyncio
import gc
import json
import signal
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.soak.containers import sizes, weigh

BOUNDS = (
    ("gateway.auth.tickets", "REMEMBERED"),
    ("gateway.auth.tokens", "REMEMBERED"),
    ("gateway.broker.base", "DEDUPLICATION_KEYS"),
    ("gateway.broker.memory", "DEDUPLICATION_KEYS"),
    ("gateway.broker.sqlite_store", "CHANNELS"),
    ("gateway.broker.sqlite_store", "DEDUPLICATION_KEYS"),
    ("gateway.config.catalog", "CACHE"),
    ("gateway.history", "EMPTY_CHANNELS"),
    ("gateway.http.cors", "ANSWERS"),
    ("gateway.limits.addresses", "REMEMBERED"),
    ("gateway.limits.limits", "ANNOUNCED"),
    ("gateway.limits.peers", "IDLE"),
    ("gateway.seldom", "THINGS"),
    ("gateway.sources.pubsub_topics", "REMEMBERED"),
    ("gateway.sources.router", "CACHE"),
    ("gateway.webhooks.signatures", "REPLAYS"),
)
"""Module and name of the bound of each cache."""

WEIGHED = 100
"""Entries from which on a container's bytes are reported."""


def report(file: Path) -> None:
    """Write what this process holds, as one change of the file."""
    gc.collect()
    kinds = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    held = {
        "containers": sizes("gateway"),
        "bytes": weigh("gateway", WEIGHED),
        "objects": dict(kinds.most_common(200)),
    }
    new = file.with_suffix(".new")
    new.write_text(json.dumps(held))
    new.replace(file)


def main() -> None:
    """Set the bounds, install the signal's handler when the gateway starts, and run the command."""
    file, bound = Path(sys.argv.pop(1)), int(sys.argv.pop(1))
    for module, name in BOUNDS if bound else ():
        assert getattr(import_module(module), name) > bound, f"{module}.{name}"
        setattr(import_module(module), name, bound)
    from gateway.cli.main import main as command  # noqa: PLC0415 -- only now, with the bounds in place
    from gateway.daemon import Daemon  # noqa: PLC0415 -- same

    start = Daemon.start

    async def reporting(daemon: Daemon, *arguments: Any) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, report, file)
        await start(daemon, *arguments)

    Daemon.start = reporting  # type: ignore[method-assign]
    sys.exit(command())


if __name__ == "__main__":
    main()
