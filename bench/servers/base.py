"""What every server under test is to the scenarios."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.kept_alive import KeptAlive
from bench.load import AHEAD
from bench.process import Process

SECRET = "b" * 32
"""Of the tokens that the gateway checks."""


class MissingError(Exception):
    """A server cannot be run here; the text says why, and goes into the report."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a scenario needs of a server."""

    workers: int = 1
    channels: tuple[str, ...] = ("orders",)
    heartbeat: float = 15.0
    """Seconds after which a silent stream gets a sign of life."""
    history: int = 1000
    """Events kept, per channel."""
    token: str = ""
    """The algorithm of the token that streams must show; empty: none."""
    tls: bool = False
    trusted: tuple[str, ...] = ()
    """Networks without limits of their own; with any, all others have those that a gateway has by default."""
    log: str = "warning"
    """Level of the gateway's log."""
    broker: str = ""
    """URL of the gateway's log; empty for the one that fits the workers."""


class Server(ABC):
    """A server that runs. Its own programs, and all that they started, are measured together."""

    name: str
    version: str
    batch = 1
    """Events that one publish may carry; with 1, each is a request of its own."""
    ahead = AHEAD
    """Handshakes under way at once that it takes without errors."""

    def __init__(self, setup: Setup, port: int, processes: Sequence[Process]) -> None:
        self.setup = setup
        self.workers = setup.workers
        self.port = port
        self._processes = processes
        self._posting = KeptAlive(self._posting_port(), tls=setup.tls)

    @abstractmethod
    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return what a load client asks for, to read a channel."""

    def targets(self, channel: str, streams: int) -> Sequence[str]:
        """Return what so many users ask for; only with tokens they differ."""
        return [self.target(channel)]

    @abstractmethod
    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Publish events, each a JSON document, and return when the server has confirmed them."""

    def expect_streams(self, streams: int) -> None:  # noqa: B027  # only one has to be told
        """Say that so many streams will be opened now."""

    def streams_are_open(self) -> None:  # noqa: B027
        """Say that they are."""

    def thrown_out(self) -> int | None:
        """Return how many streams it has ended because they did not read; None where it does not tell."""
        return None

    def lines(self) -> int:
        """Return how many lines it has logged; 0 where nobody looks."""
        return 0

    def cpu(self) -> float:
        """Return the CPU seconds, user and system, of all its processes."""
        return sum(process.cpu() for process in self._processes)

    def pss(self) -> int:
        """Return the proportional set size of all its processes in bytes."""
        return sum(process.pss() for process in self._processes)

    def is_running(self) -> bool:
        """Whether none of its main processes has ended."""
        return all(process.is_running() for process in self._processes)

    def close(self) -> None:
        """Close what it publishes by."""
        self._posting.close()

    def _posting_port(self) -> int:
        return self.port

    def __str__(self) -> str:
        """Its name as in a table."""
        return self.name


Start = Callable[[Setup], contextlib.AbstractContextManager[Server]]
"""Runs a server for the length of a ``with`` block. Raises MissingError."""


def with_last_id(path: str, last_event_id: str | None) -> str:
    """Return a target that resumes after an id, if there is one."""
    return path if last_event_id is None else f"{path}\tLast-Event-ID: {last_event_id}"
