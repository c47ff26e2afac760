"""A worker process, started by `gateway.server.workers.worker_handle` only.

It is a node like any other. Its configuration arrives on standard input, so that all workers have the same
one even if the file changed meanwhile. That pipe stays open for commands; its end means that the parent is
gone. Signals would not do, because terminals and service managers send theirs to the whole process group.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress

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
from gateway.server.workers.messages import LENGTH_BYTES, LISTENING, Command, Reply, WorkerInit

log = structlog.get_logger("gateway.workers")

_command_decoder = msgspec.msgpack.Decoder(Command)


class ControlLoop:
    """Reads the parent's commands, and carries them out on the node."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._prepared: PreparedConfig | None = None
        self._lock = asyncio.Lock()
        self._reload_tasks: set[asyncio.Task[None]] = set()
        self._pipe: asyncio.StreamReader | None = None

    async def run(self) -> None:
        """Run until the parent is gone, then drain."""
        if self._pipe is None:
            loop, pipe = asyncio.get_running_loop(), asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin)
            self._pipe = pipe
        with suppress(asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await self._pipe.readexactly(LENGTH_BYTES), "big")
                self._dispatch(_command_decoder.decode(await self._pipe.readexactly(length)))
        log.warning("parent_lost")
        self._daemon.drain()

    def _dispatch(self, command: Command) -> None:
        if command.name == "force_stop":
            self._daemon.components.shutdown.force()
        elif command.name in ("drain", "drain_now"):
            self._daemon.drain(skip_pre_drain=command.name == "drain_now")
        else:  # takes a while, in which other commands are read; the parent waits for the reply
            task = asyncio.create_task(self._reload(command), name="reload")
            self._reload_tasks.add(task)
            task.add_done_callback(self._reload_tasks.discard)

    async def _reload(self, command: Command) -> None:
        error, ended = None, 0
        try:
            async with self._lock:  # in order, also where several waited while this process was frozen
                prepared, self._prepared = self._prepared, None
                if command.name == "commit":
                    ended = 0 if prepared is None else self._daemon.commit(prepared)
                elif prepared is not None:
                    self._daemon.discard(prepared)
                if command.name == "prepare":
                    self._prepared = await self._daemon.prepare(Config.deserialize(command.config))
        except StartupError as caught:
            error = caught.message
        except Exception as caught:
            log.exception("config_reload_crashed")
            error = f"{type(caught).__name__}; the log has more"
        os.write(1, msgspec.json.encode(Reply(command.number, error, ended)) + b"\n")


async def _serve(init: WorkerInit, config: Config, metrics: Metrics) -> int:
    def report_listening(public: int, admin: int) -> None:
        os.write(1, LISTENING)

    sockets = WorkerSockets(tuple(each.resolve() for each in init.addresses), init.admin_path)
    daemon = Daemon(config, metrics, sockets, on_listening=report_listening)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.drain)
    control_loop = daemon.components.background.start_task("worker_control_loop", ControlLoop(daemon).run)
    try:
        return await daemon.run()
    finally:
        control_loop.cancel()


def main() -> int:
    """Serve until the parent says otherwise. The exit status is that of ``sse-gateway run``."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends it to the whole group; the parent decides
    length = int.from_bytes(os.read(0, LENGTH_BYTES), "big")
    data = b""
    while len(data) < length:
        part = os.read(0, length - len(data))
        if not part:
            return 1
        data += part
    init = msgspec.msgpack.decode(data, type=WorkerInit)
    config = Config.deserialize(init.config)
    metrics = Metrics()
    try:
        return runtime.run_process(
            lambda: _serve(init, config, metrics),
            config.logging,
            metrics.log_lines_dropped.inc,
            worker=init.number,
            background=TaskSupervisor(metrics.count_background_failure),
        )
    except StartupError as error:
        print(escape_unprintable_lines(error.message), file=sys.stderr)
        return 1
