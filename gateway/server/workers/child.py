"""A worker process, started by `gateway.server.workers.worker_handle` and nobody else.

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
from gateway.core.sanitize import escape_unprintable_lines
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.server import runtime
from gateway.server.components import WorkerSockets
from gateway.server.daemon import Daemon, PreparedConfig

log = structlog.get_logger("gateway.workers")

LISTENING = b"listening\n"
DRAIN, DRAIN_NOW, FORCE_STOP = b"d", b"a", b"e"
PREPARE, COMMIT, DISCARD = b"p", b"c", b"x"
"""A reload: make ready for the configuration that follows, go over to it, or forget it. Each is answered."""

LENGTH_BYTES = 4
"""Bytes before a body, which say how long it is."""


@dataclass(frozen=True, slots=True)
class WorkerInit:
    """What a worker is told by its parent."""

    number: int
    config: Config
    sockets: WorkerSockets


class Reply(msgspec.Struct, frozen=True):
    """What a worker says to an order of a reload."""

    number: int
    """That of the order."""
    error: str | None = None
    ended: int = 0
    """Streams that had to end."""


class ControlLoop:
    """Hears the parent's orders, and lets the node follow them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._prepared: PreparedConfig | None = None
        self._lock = asyncio.Lock()
        self._reload_tasks: set[asyncio.Task[None]] = set()
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
                    body = await pipe.readexactly(int.from_bytes(await pipe.readexactly(LENGTH_BYTES), "big"))
                self._dispatch(order, body)
        log.warning("parent_lost")
        self._daemon.drain()

    def _dispatch(self, command: bytes, body: bytes) -> None:
        if command == FORCE_STOP:
            self._daemon.force_stop()
        elif command in (DRAIN, DRAIN_NOW):
            self._daemon.drain(skip_pre_drain=command == DRAIN_NOW)
        else:  # takes a while, in which other orders are heard; the parent waits for its answer
            number, config = pickle.loads(body)  # noqa: S301 -- a private pipe from our own parent
            task = asyncio.create_task(self._reload(command, number, config), name="reload")
            self._reload_tasks.add(task)
            task.add_done_callback(self._reload_tasks.discard)

    async def _reload(self, command: bytes, number: int, config: Config | None) -> None:
        answer = Reply(number)
        try:
            async with self._lock:  # in their order, also where several waited while this process was frozen
                if config is not None:
                    self._discard_prepared()
                    self._prepared = await self._daemon.prepare(config)
                elif command == DISCARD:
                    self._discard_prepared()
                elif self._prepared is not None:
                    prepared, self._prepared = self._prepared, None
                    answer = Reply(number, ended=self._daemon.commit(prepared))
        except StartupError as error:
            answer = Reply(number, error.message)
        except Exception as error:
            log.exception("config_reload_crashed")
            answer = Reply(number, f"{type(error).__name__}; the log has more")
        os.write(1, msgspec.json.encode(answer) + b"\n")

    def _discard_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._daemon.discard(prepared)


async def _serve(init: WorkerInit, metrics: Metrics) -> int:
    daemon = Daemon(init.config, metrics, init.sockets)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.drain)

    def listening() -> None:
        os.write(1, LISTENING)

    daemon.on_listening = listening
    obeying = daemon.background.start_task("worker_control_loop", ControlLoop(daemon).run)
    try:
        return await daemon.run()
    finally:
        obeying.cancel()


def main() -> int:
    """Serve until told to go. The exit status is that of ``sse-gateway run``."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    length = int.from_bytes(os.read(0, LENGTH_BYTES), "big")
    data = b""
    while len(data) < length:
        part = os.read(0, length - len(data))
        if not part:
            return 1
        data += part
    orders: WorkerInit = pickle.loads(data)  # noqa: S301 -- a private pipe from our own parent
    metrics = Metrics()
    try:
        return runtime.run_process(
            lambda: _serve(orders, metrics),
            orders.config.logging,
            metrics.log_lines_dropped.inc,
            worker=orders.number,
            background=TaskSupervisor(metrics.count_background_failure),
        )
    except StartupError as error:
        print(escape_unprintable_lines(error.message), file=sys.stderr)
        return 1
