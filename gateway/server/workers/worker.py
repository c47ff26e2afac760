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
from gateway.config.model.config import Config
from gateway.http.sockets import Reserved
from gateway.observability.metrics import Family
from gateway.server.components import Shared
from gateway.server.workers.child import DRAIN, DRAIN_AT_ONCE, END, LENGTH, LISTENING, Answer, Orders

ASK_SECONDS = 2.0
"""How long a worker may take to answer its parent."""

# Not -m, which would run what lies in the working folder, in a process that holds secrets.
# A terminal sends SIGINT to the whole group, also while modules are imported; the parent decides.
_RUN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.append(sys.argv[1]);"
    " from gateway.server.workers.child import main; sys.exit(main())"
)

AT_ONCE_SECONDS = 0.03
"""How long a probe waits for a worker that answered lately."""

FRESH_SECONDS = 2.0
"""How old that answer may be."""

RELOAD_SECONDS = 15.0
"""How long a worker may take to make ready for another configuration, or to go over to it."""

_families = msgspec.json.Decoder(list[Family])
_answer = msgspec.json.Decoder(Answer)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH, "big") + data


class Worker:
    """One run of a worker process; a worker that is started again is another object."""

    def __init__(self, number: int, config: Config, reserved: Reserved, folder: Path) -> None:
        """Prepare worker ``number``, which shares the ``reserved`` addresses; ``folder`` takes its socket."""
        self.number = number
        self.config = config
        """By what it serves."""
        self.path = folder / f"worker-{number}.sock"
        self.started = time.monotonic()
        self.answered = time.monotonic()
        """When it last answered, or was started."""
        self.families: list[Family] = []
        """What it last told of its metrics."""
        self.is_listening = False
        self.is_ending = False
        self._orders = Orders(number, config, Shared(reserved.addresses, str(self.path)))
        self._numbers = reserved.numbers
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._reloads = 0
        self._probing: dict[str, asyncio.Task[Any]] = {}
        self._said: dict[str, tuple[float, Any]] = {}

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
        self.path.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _RUN, str(Path(gateway.__file__).parents[1])),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._numbers,
        )
        self._tell(_sized(pickle.dumps(self._orders)))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self.path)),
            timeout=aiohttp.ClientTimeout(total=ASK_SECONDS),
        )

    async def listening(self) -> bool:
        """Wait until it listens; False if it ended before."""
        assert self._process is not None
        assert self._process.stdout is not None
        self.is_listening = await self._process.stdout.readline() == LISTENING
        self.answered = time.monotonic()
        return self.is_listening

    async def ended(self) -> int:
        """Wait for its end and return the exit status, negative for a signal."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        self.is_listening = False
        if self._session is not None:
            await self._session.close()
        return status

    def end(self, *, at_once: bool = False) -> None:
        """Tell it to drain, ``at_once`` without `timeouts.pre_drain`; the second time, to end now.

        Harmless where it ended already.
        """
        if self._process is not None:  # else it is told when it is there: `is_ending` says that it was not
            self._tell(END if self.is_ending else DRAIN_AT_ONCE if at_once else DRAIN)
            self.is_ending = True

    def _tell(self, data: bytes) -> None:
        """Write to its pipe, which stays open while the parent lives; harmless where it ended already."""
        pipe = None if self._process is None else self._process.stdin
        with suppress(RuntimeError):  # uvloop's word for a pipe that it has seen closed
            if pipe is not None and not pipe.is_closing():
                pipe.write(data)

    async def reload(self, order: bytes, config: Config | None = None) -> Answer | None:
        """Give an order of a reload, and return the answer; None if it died. To hang is an error."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._reloads += 1
        self._tell(order + _sized(pickle.dumps((self._reloads, config))))
        with suppress(TimeoutError):
            async with asyncio.timeout(RELOAD_SECONDS):
                while line := await self._process.stdout.readline():
                    answer = _answer.decode(line)
                    if answer.number == self._reloads:  # else one that came too late
                        return answer
                return None
        return Answer(self._reloads, f"worker {self.number} gave no answer")

    def kill(self) -> None:
        """End it without a goodbye; harmless where it ended already."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def ask(self, path: str, method: str = "GET", **query: str) -> Any:
        """Return the JSON that it answers on its admin socket, whatever the status; None if it does not."""
        answer = await self._request(method, path, query)
        return None if answer is None else msgspec.json.decode(answer)

    async def probe(self, path: str) -> Any:
        """Return what it answers on a path of probes, as `ask` does.

        Whoever probes has little patience, and a worker in a broadcast on a busy machine may need some. So
        what it said within `FRESH_SECONDS` will do where it does not answer at once.
        """
        asking = self._probing.get(path)
        if asking is None or asking.done():
            asking = self._probing[path] = asyncio.create_task(self._probe(path), name=f"probe {path}")
        done, _ = await asyncio.wait((asking,), timeout=AT_ONCE_SECONDS)
        said, answer = self._said.get(path, (-FRESH_SECONDS, None))
        if not done and time.monotonic() - said < FRESH_SECONDS:
            return answer
        return await asyncio.shield(asking)

    async def _probe(self, path: str) -> Any:
        answer = await self.ask(path)
        if answer is not None:
            self._said[path] = time.monotonic(), answer
        return answer

    async def tell_metrics(self) -> bool:
        """Ask for the metrics, and keep them in `families`. Returns False if it did not answer."""
        answer = await self._request("GET", "/families", {})
        if answer is None or not self.is_listening:  # it died meanwhile, and was counted as it was
            return False
        self.families = _families.decode(answer)
        return True

    async def _request(self, method: str, path: str, query: Mapping[str, str]) -> bytes | None:
        if self._session is None or not self.is_listening:
            return None
        try:
            async with self._session.request(method, f"http://worker{path}", params=query) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        self.answered = time.monotonic()
        return body
