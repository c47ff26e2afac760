"""The parent's side of a worker: its process, the pipe that keeps it alive, and its admin socket."""

import asyncio
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
from gateway.server.workers.messages import (
    LISTENING,
    Command,
    CommandName,
    Reply,
    SharedAddress,
    WorkerInit,
    frame,
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
"""How long a probe waits for a worker whose last answer is not older than `PROBE_CACHE_SECONDS`."""

PROBE_CACHE_SECONDS = 2.0
"""How old an answer may be that a probe gets at once."""

RELOAD_TIMEOUT_SECONDS = 15.0
"""How long a worker may take to prepare a configuration, or to commit it."""

_families_decoder = msgspec.json.Decoder(list[MetricFamily])
_status_decoder = msgspec.json.Decoder(StatusReport)
_reply_decoder = msgspec.json.Decoder(Reply)


class WorkerHandle:
    """One run of a worker process; a restarted worker is another object."""

    def __init__(self, number: int, config: Config, reserved: ReservedAddresses, folder: Path) -> None:
        """Prepare worker ``number``, which shares the ``reserved`` addresses; ``folder`` holds its socket."""
        self.number = number
        self.config = config
        """The configuration that it serves."""
        self.socket_path = folder / f"worker-{number}.sock"
        self.started_at = time.monotonic()
        self.last_answer_at = time.monotonic()
        """When it last answered, or was started (monotonic seconds)."""
        self.last_families: list[MetricFamily] = []
        """The metrics of its last scrape."""
        self.is_listening = False
        self.is_stopping = False
        addresses = tuple(map(SharedAddress.of, reserved.addresses))
        self._init = WorkerInit(number, config.serialize(), addresses, str(self.socket_path))
        self._inherited_fds = reserved.inherited_fds
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._reload_number = 0
        self._probe_tasks: dict[str, asyncio.Task[Any]] = {}
        self._probe_cache: dict[str, tuple[float, Any]] = {}

    @property
    def pid(self) -> int | None:
        """The id of the process; None if none could be started."""
        return None if self._process is None else self._process.pid

    @property
    def is_starting(self) -> bool:
        """Whether it does not listen yet: its process exists, or is about to."""
        return not self.is_listening and (self._process is None or self._process.returncode is None)

    async def start(self) -> None:
        """Start the process; `wait_until_listening` waits until it serves."""
        self.socket_path.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _CHILD_SCRIPT, str(Path(gateway.__file__).parents[1])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._inherited_fds,
        )
        self._send(self._init)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.socket_path)),
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
        )

    async def wait_until_listening(self) -> bool:
        """Wait until it listens; return False if it ended before."""
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
        """Let it drain, with or without `timeouts.pre_drain`; the second call lets it end without draining.

        Harmless if it has ended.
        """
        if self._process is not None:  # else `Parent._start_worker` stops it once it is there
            self._send(
                Command("force_stop" if self.is_stopping else "drain_now" if skip_pre_drain else "drain")
            )
            self.is_stopping = True

    def _send(self, message: msgspec.Struct) -> None:
        """Write to its pipe, which stays open while the parent lives; harmless if it has ended."""
        pipe = None if self._process is None else self._process.stdin
        with suppress(RuntimeError):  # what uvloop raises for a closed pipe
            if pipe is not None and not pipe.is_closing():
                pipe.write(frame(message))

    async def reload(self, command: CommandName, config: bytes = b"") -> Reply | None:
        """Send a reload command, and return the reply, also for a timeout; None if it died."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._reload_number += 1
        self._send(Command(command, self._reload_number, config))
        with suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_TIMEOUT_SECONDS):
                while line := await self._process.stdout.readline():
                    answer = _reply_decoder.decode(line)
                    if answer.number == self._reload_number:  # else a late reply to an earlier command
                        return answer
                return None
        return Reply(
            self._reload_number, f"worker {self.number} did not reply within {RELOAD_TIMEOUT_SECONDS:g} s"
        )

    def kill(self) -> None:
        """Kill it; harmless if it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def request_json(self, path: str, method: str = "GET", **query: str) -> Any:
        """Return the JSON response of its admin socket, whatever the status; None if it does not answer."""
        answer = await self._request(method, path, query)
        return None if answer is None else msgspec.json.decode(answer)

    async def fetch_status(self) -> StatusReport | None:
        """Return its ``/status``; None if it does not answer."""
        answer = await self._request("GET", "/status", {})
        return None if answer is None else _status_decoder.decode(answer)

    async def probe(self, path: str) -> Any:
        """Return the JSON response to a health probe; None if it does not answer.

        Probes have short timeouts, and a worker in a broadcast on a busy machine may exceed them. So if it
        does not answer at once, its last answer is returned, if that is at most `PROBE_CACHE_SECONDS` old.
        """
        request = self._probe_tasks.get(path)
        if request is None or request.done():
            request = self._probe_tasks[path] = asyncio.create_task(self._probe(path), name=f"probe {path}")
        done, _ = await asyncio.wait((request,), timeout=PROBE_WAIT_SECONDS)
        answered_at, answer = self._probe_cache.get(path, (-PROBE_CACHE_SECONDS, None))
        if not done and time.monotonic() - answered_at < PROBE_CACHE_SECONDS:
            return answer
        return await asyncio.shield(request)

    async def _probe(self, path: str) -> Any:
        answer = await self.request_json(path)
        if answer is not None:
            self._probe_cache[path] = time.monotonic(), answer
        return answer

    async def fetch_metrics(self) -> bool:
        """Scrape its metrics into `last_families`. Returns False if it did not answer."""
        answer = await self._request("GET", "/families", {})
        if answer is None or not self.is_listening:  # it died meanwhile, and its last scrape was retired
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
