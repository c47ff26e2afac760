"""A worker process, started by `gateway.server.workers.worker` and nobody else.

It is a node like any other. Its configuration comes on standard input, ready made, so that all workers
have the same one even if the file changed meanwhile. The pipe stays open, and is how the parent goes on
talking: each order is one byte, and the body that some have has its length before it. The end of the pipe
means that the parent is gone. Signals would not do, because terminals and service managers send theirs to
the whole group. One line on standard output says that it listens, and one answers each order of a reload.
"""

import asyncio
import os
import pickle
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import structlog

from gateway.config.model.config import Config
from gateway.core.errors import StartupError
from gateway.core.text import safe_lines
from gateway.observability.background import Background
from gateway.observability.metrics import Metrics
from gateway.server import runtime
from gateway.server.components import Shared
from gateway.server.daemon import Daemon, Prepared

log = structlog.get_logger("gateway.workers")

LISTENING = b"listening\n"
DRAIN, DRAIN_AT_ONCE, END = b"d", b"a", b"e"
PREPARE, COMMIT, DISCARD = b"p", b"c", b"x"
"""A reload: make ready for the configuration that follows, go over to it, or forget it. Each is answered."""

LENGTH = 4
"""Bytes before a body, which say how long it is."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told by its parent."""

    number: int
    config: Config
    shared: Shared


class Answer(msgspec.Struct, frozen=True):
    """What a worker says to an order of a reload."""

    number: int
    """That of the order."""
    error: str | None = None
    ended: int = 0
    """Streams that had to end."""


class Obedience:
    """Hears the parent's orders, and lets the node follow them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._prepared: Prepared | None = None
        self._turn = asyncio.Lock()
        self._reloading: set[asyncio.Task[None]] = set()
        self._pipe: asyncio.StreamReader | None = None

    async def run(self) -> None:
        """Listen for ever, or until the parent is gone."""
        if self._pipe is None:
            loop, pipe = asyncio.get_running_loop(), asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
            self._pipe = pipe
        pipe = self._pipe
        with suppress(asyncio.IncompleteReadError):
            while True:
                order = await pipe.readexactly(1)
                body = b""
                if order in (PREPARE, COMMIT, DISCARD):
                    body = await pipe.readexactly(int.from_bytes(await pipe.readexactly(LENGTH), "big"))
                self._follow(order, body)
        log.warning("parent_is_gone")
        self._daemon.drain()

    def _follow(self, order: bytes, body: bytes) -> None:
        if order == END:
            self._daemon.end_now()
        elif order in (DRAIN, DRAIN_AT_ONCE):
            self._daemon.drain(at_once=order == DRAIN_AT_ONCE)
        else:  # takes a while, in which other orders are heard; the parent waits for its answer
            number, config = pickle.loads(body)  # noqa: S301 -- a private pipe from our own parent
            task = asyncio.create_task(self._reload(order, number, config), name="reload")
            self._reloading.add(task)
            task.add_done_callback(self._reloading.discard)

    async def _reload(self, order: bytes, number: int, config: Config | None) -> None:
        answer = Answer(number)
        try:
            async with self._turn:  # in their order, also where several waited while this process was frozen
                if config is not None:
                    self._discard()
                    self._prepared = await self._daemon.prepare(config)
                elif order == DISCARD:
                    self._discard()
                elif self._prepared is not None:
                    prepared, self._prepared = self._prepared, None
                    answer = Answer(number, ended=self._daemon.commit(prepared))
        except StartupError as error:
            answer = Answer(number, error.message)
        except Exception as error:
            log.exception("config_reload_broke")
            answer = Answer(number, f"{type(error).__name__}; the log has more")
        os.write(1, msgspec.json.encode(answer) + b"\n")

    def _discard(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._daemon.discard(prepared)


async def _serve(orders: Orders, metrics: Metrics) -> int:
    daemon = Daemon(orders.config, metrics, orders.shared)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.drain)

    def listening() -> None:
        os.write(1, LISTENING)

    daemon.on_listening = listening
    obeying = daemon.background.start("parent_orders", Obedience(daemon).run)
    try:
        return await daemon.run()
    finally:
        obeying.cancel()


def main() -> int:
    """Serve until told to go. The exit status is that of ``sse-gateway run``."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    length = int.from_bytes(os.read(0, LENGTH), "big")
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
            background=Background(metrics.background_failed),
        )
    except StartupError as error:
        print(safe_lines(error.message), file=sys.stderr)
        return 1
