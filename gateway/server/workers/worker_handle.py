"""One worker as its parent sees it: a process, a pipe that keeps it alive, and a socket that answers."""

import asyncio
import pickle
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

import gateway
from gateway.admin.status_report import StatusReport
from gateway.config.model.config import Config
from gateway.http.sockets import ReservedAddresses
from gateway.observability.metrics import MetricFamily
from gateway.server.components import WorkerSockets
from gateway.server.workers.child import (
    DRAIN,
    DRAIN_NOW,
    FORCE_STOP,
    LENGTH_BYTES,
    LISTENING,
    Reply,
    WorkerInit,
)

REQUEST_TIMEOUT_SECONDS = 2.0
"""How long a worker may take to answer its parent."""

# Not -m, which would run what lies in the working folder, in a process that holds secrets.
# A terminal sends SIGINT to the whole group, also while modules are imported; the parent decides.
_CHILD_SCRIPT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.append(sys.argv[1]);"
    " from gateway.server.workers.child import main; sys.exit(main())"
)

PROBE_WAIT_SECONDS = 0.03
"""How long a probe waits for a worker that answered lately."""

PROBE_CACHE_SECONDS = 2.0
"""How old that answer may be."""

RELOAD_TIMEOUT_SECONDS = 15.0
"""How long a worker may take to make ready for another configuration, or to go over to it."""

_families_decoder = msgspec.json.Decoder(list[MetricFamily])
_status_decoder = msgspec.json.Decoder(StatusReport)
_reply_decoder = msgspec.json.Decoder(Reply)


def _length_prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class WorkerHandle:
    """One run of a worker process; a worker that is started again is another object."""

    def __init__(self, number: int, config: Config, reserved: ReservedAddresses, folder: Path) -> None:
        """Prepare worker ``number``, which shares the ``reserved`` addresses; ``folder`` takes its socket."""
        self.number = number
        self.config = config
        """By what it serves."""
        self.socket_path = folder / f"worker-{number}.sock"
        self.started_at = time.monotonic()
        self.last_answer_at = time.monotonic()
        """When it last answered, or was started."""
        self.last_families: list[MetricFamily] = []
        """What it last told of its metrics."""
        self.is_listening = False
        self.is_stopping = False
        self._worker_init = WorkerInit(
            number, config, WorkerSockets(reserved.addresses, str(self.socket_path))
        )
        self._inherited_fds = reserved.inherited_fds
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._reload_number = 0
        self._probe_tasks: dict[str, asyncio.Task[Any]] = {}
        self._probe_cache: dict[str, tuple[float, Any]] = {}

    @property
    def pid(self) -> int | None:
        """The id of the process, where one could be started."""
        return None if self._process is None else self._process.pid

    @property
    def is_starting(self) -> bool:
        """Whether it may yet listen: its process is there, or about to be, and has not said so."""
        return not self.is_listening and (self._process is None or self._process.returncode is None)

    async def start(self) -> None:
        """Start the process; it listens later."""
        self.socket_path.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _CHILD_SCRIPT, str(Path(gateway.__file__).parents[1])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._inherited_fds,
        )
        self._send(_length_prefixed(pickle.dumps(self._worker_init)))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_path)),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
        )

    async def wait_until_listening(self) -> bool:
        """Wait until it listens; False if it ended before."""
        assert self._process is not None
        assert self._process.stdout is not None
        self.is_listening = await self._process.stdout.readline() == LISTENING
        self.last_answer_at = time.monotonic()
        return self.is_listening

    async def wait_until_exit(self) -> int:
        """Wait for its end and return the exit status, negative for a signal."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        self.is_listening = False
        if self._session is not None:
            await self._session.close()
        return status

    def stop(self, *, skip_pre_drain: bool = False) -> None:
        """Tell it to drain, ``at_once`` without `timeouts.pre_drain`; the second time, to end now.

        Harmless where it ended already.
        """
        if self._process is not None:  # else it is told when it is there: `is_ending` says that it was not
            self._send(FORCE_STOP if self.is_stopping else DRAIN_NOW if skip_pre_drain else DRAIN)
            self.is_stopping = True

    def _send(self, data: bytes) -> None:
        """Write to its pipe, which stays open while the parent lives; harmless where it ended already."""
        pipe = None if self._process is None else self._process.stdin
        with suppress(RuntimeError):  # uvloop's word for a pipe that it has seen closed
            if pipe is not None and not pipe.is_closing():
                pipe.write(data)

    async def reload(self, command: bytes, config: Config | None = None) -> Reply | None:
        """Give an order of a reload, and return the answer; None if it died. To hang is an error."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._reload_number += 1
        self._send(command + _length_prefixed(pickle.dumps((self._reload_number, config))))
        with suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_TIMEOUT_SECONDS):
                while line := await self._process.stdout.readline():
                    answer = _reply_decoder.decode(line)
                    if answer.number == self._reload_number:  # else one that came too late
                        return answer
                return None
        return Reply(self._reload_number, f"worker {self.number} gave no answer")

    def kill(self) -> None:
        """End it without a goodbye; harmless where it ended already."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def request_json(self, path: str, method: str = "GET", **query: str) -> Any:
        """Return the JSON that it answers on its admin socket, whatever the status; None if it does not."""
        answer = await self._request(method, path, query)
        return None if answer is None else msgspec.json.decode(answer)

    async def fetch_status(self) -> StatusReport | None:
        """Return its ``/status``; None if it does not answer."""
        answer = await self._request("GET", "/status", {})
        return None if answer is None else _status_decoder.decode(answer)

    async def probe(self, path: str) -> Any:
        """Return what it answers on a path of probes, as `ask` does.

        Whoever probes has little patience, and a worker in a broadcast on a busy machine may need some. So
        what it said within `PROBE_CACHE_SECONDS` will do where it does not answer at once.
        """
        asking = self._probe_tasks.get(path)
        if asking is None or asking.done():
            asking = self._probe_tasks[path] = asyncio.create_task(self._probe(path), name=f"probe {path}")
        done, _ = await asyncio.wait((asking,), timeout=PROBE_WAIT_SECONDS)
        said, answer = self._probe_cache.get(path, (-PROBE_CACHE_SECONDS, None))
        if not done and time.monotonic() - said < PROBE_CACHE_SECONDS:
            return answer
        return await asyncio.shield(asking)

    async def _probe(self, path: str) -> Any:
        answer = await self.request_json(path)
        if answer is not None:
            self._probe_cache[path] = time.monotonic(), answer
        return answer

    async def fetch_metrics(self) -> bool:
        """Ask for the metrics, and keep them in `families`. Returns False if it did not answer."""
        answer = await self._request("GET", "/families", {})
        if answer is None or not self.is_listening:  # it died meanwhile, and was counted as it was
            return False
        self.last_families = _families_decoder.decode(answer)
        return True

    async def _request(self, method: str, path: str, query: Mapping[str, str]) -> bytes | None:
        if self._session is None or not self.is_listening:
            return None
        try:
            async with self._session.request(method, f"http://worker{path}", params=query) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        self.last_answer_at = time.monotonic()
        return body
