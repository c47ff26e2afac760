"""A worker process, started by `gateway.workers.worker` and nobody else.

It is a node like any other. Its configuration comes on standard input, ready made, so that all workers
have the same one even if the file changed meanwhile. The pipe stays open, and is how the parent ends it:
one byte lets it drain, another lets it drain without `timeouts.pre_drain`, a third ends it now, and the
end of the pipe means that the parent is gone. Signals would not do, because terminals and service
managers send theirs to the whole group. One line on standard output says that it listens.
"""

import asyncio
import os
import pickle
import signal
import sys
from dataclasses import dataclass

import structlog

from gateway import runtime
from gateway.config.model import Config
from gateway.daemon import Daemon, Shared
from gateway.errors import StartupError
from gateway.metrics import Metrics

log = structlog.get_logger("gateway.workers")

LISTENING = b"listening\n"
DRAIN, DRAIN_AT_ONCE, END = b"d", b"a", b"e"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told by its parent."""

    number: int
    config: Config
    shared: Shared


async def _serve(orders: Orders, metrics: Metrics) -> int:
    loop = asyncio.get_running_loop()
    daemon = Daemon(orders.config, metrics, orders.shared)

    def told() -> None:
        orders = os.read(0, 16)
        if not orders:
            loop.remove_reader(0)
            log.warning("parent_is_gone")
            daemon.drain()
        elif END in orders:
            daemon.end_now()
        else:
            daemon.drain(at_once=DRAIN_AT_ONCE in orders)

    loop.add_reader(0, told)
    loop.add_signal_handler(signal.SIGTERM, daemon.drain)

    def listening() -> None:
        os.write(1, LISTENING)

    daemon.on_listening = listening
    return await daemon.run()


def main() -> int:
    """Serve until told to go. The exit status is that of ``sse-gateway run``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    length = int.from_bytes(os.read(0, 4), "big")
    data = b""
    while len(data) < length:
        part = os.read(0, length - len(data))
        if not part:
            return 1
        data += part
    orders: Orders = pickle.loads(data)  # noqa: S301 -- a private pipe from our own parent
    metrics = Metrics()
    try:
        return runtime.run(
            lambda: _serve(orders, metrics),
            orders.config.log,
            metrics.log_dropped.inc,
            worker=orders.number,
        )
    except StartupError as error:
        print(error.message, file=sys.stderr)
        return 1
