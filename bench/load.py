"""The load: one or more processes of the C load client, driven together."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import build
from bench.figures import Times
from bench.process import Process, running

PER_PROCESS = 19_000
"""Streams that one process may hold with 20,000 descriptors."""

AHEAD = 500
"""Handshakes under way at once, unless it is a storm."""

STORM = 1_000_000
"""As `AHEAD`: no limit."""

_ADDRESSES = 4
"""Source addresses of one process: 127.0.0.2 and up."""

_GRACE = 30.0
"""Seconds that a client may take for its answer beyond the time that it was given."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of the streams that were to be opened."""

    live: int
    at: float
    """When the last one was live or had failed, on the monotonic clock."""
    handshake: Times
    """From connect() to the last byte of the first block."""
    retransmitting: int
    """Streams whose connection lost segments: the server's backlog was full."""
    failed: dict[str, int]
    """By reason, those that are not zero."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What came until the events were there or the time was up."""

    events: int
    at: float
    """When the last event came, on the monotonic clock; without all of them: when the time was up."""
    complete: bool


@dataclass(frozen=True, slots=True)
class Stats:
    """All that was counted since the last reset; ``lost`` and ``failed`` since the start."""

    live: int
    lost: int
    events: int
    own: int
    gaps: int
    comments: int
    bytes: int
    failed: dict[str, int]
    latency: Times
    """From an event's stamp to the read of its last byte."""
    silence: Times
    """Over streams: the longest time without a byte."""


class Load:
    """Streams that are read and counted. Not safe to use from two threads."""

    def __init__(self, processes: Sequence[Process], shares: Sequence[int]) -> None:
        self._processes = processes
        self._shares = shares
        self._live = list(shares)
        self._waiting = (0, 0.0)
        self.streams = sum(shares)

    @property
    def live(self) -> int:
        """How many streams were live when they had been opened."""
        return sum(self._live)

    def open(self, *, ahead: int = AHEAD, seconds: float = 60.0) -> Opened:
        """Open all streams and wait until each is live or has failed."""
        answers = self._ask([f"open {share} {ahead} {seconds}" for share in self._shares], seconds)
        self._live = [answer["live"] for answer in answers]
        return Opened(
            self.live,
            max(answer["at"] for answer in answers) / 1e9,
            Times.merged((answer["handshake"], answer["handshake_longest"]) for answer in answers),
            sum(answer["retransmitting"] for answer in answers),
            _failed(answers),
        )

    def open_all(self, *, ahead: int = AHEAD) -> Opened:
        """Open all streams. Raises RuntimeError if one failed."""
        opened = self.open(ahead=ahead)
        if opened.failed:
            raise RuntimeError(f"of {self.streams} streams failed: {opened.failed}")
        return opened

    def reset(self) -> None:
        """Count from now on."""
        self._ask(["reset"] * len(self._processes), 0)

    def expect(self, per_stream: int, *, seconds: float = 30.0) -> None:
        """Ask for so many events a live stream since the reset; `arrived` gives the answer."""
        for process, live in zip(self._processes, self._live, strict=True):
            process.tell(f"await {per_stream * live} {seconds}")
        self._waiting = (per_stream * self.live, seconds)

    def expect_in_all(self, events: int, *, seconds: float = 30.0) -> None:
        """Ask for so many events on all streams together; for a load of one process."""
        (process,) = self._processes
        process.tell(f"await {events} {seconds}")
        self._waiting = (events, seconds)

    def arrived(self) -> Arrived:
        """Wait for what was asked for last."""
        events, seconds = self._waiting
        answers = self._answers(seconds)
        got = sum(answer["events"] for answer in answers)
        return Arrived(got, max(answer["at"] for answer in answers) / 1e9, got >= events)

    def stats(self) -> Stats:
        """Return all figures."""
        answers = self._ask(["stats"] * len(self._processes), 0)
        names = ("live", "lost", "events", "own", "gaps", "comments", "bytes")
        latency, silence = (
            Times.merged((answer[name], answer[f"{name}_longest"]) for answer in answers)
            for name in ("latency", "silence")
        )
        sums = {name: sum(answer[name] for answer in answers) for name in names}
        return Stats(**sums, failed=_failed(answers), latency=latency, silence=silence)

    def cpu(self) -> float:
        """Return the CPU seconds of all its processes."""
        return sum(process.cpu() for process in self._processes)

    def _ask(self, commands: list[str], seconds: float) -> list[dict[str, Any]]:
        for process, command in zip(self._processes, commands, strict=True):
            process.tell(command)
        return self._answers(seconds)

    def _answers(self, seconds: float) -> list[dict[str, Any]]:
        return [json.loads(process.answer(seconds + _GRACE)) for process in self._processes]


def _failed(answers: Sequence[dict[str, Any]]) -> dict[str, int]:
    reasons = answers[0]["failed"]
    counts = {reason: sum(answer["failed"][reason] for answer in answers) for reason in reasons}
    failed = {reason: count for reason, count in counts.items() if count}
    for answer in answers:
        if answer["odd_status"]:
            failed[f"status {answer['odd_status']}"] = failed.pop("status", 0)
    return failed


@contextlib.contextmanager
def load(
    port: int,
    targets: Sequence[str],
    streams: int,
    *,
    processes: int = 0,
    read: bool = True,
    receive_buffer: int = 0,
    tls: bool = False,
    source: int = 2,
) -> Iterator[Load]:
    """Run load clients for ``streams`` streams to a port of loopback, which take the targets in turn.

    A target is a path, and after it, each behind a tab, headers. Without ``read`` the streams are read until
    they are live and then never again; ``receive_buffer`` is their SO_RCVBUF in bytes. ``source`` is the last
    part of the first source address: loads that run side by side to one port take different ones.
    """
    count = processes or -(-streams // PER_PROCESS)
    shares = [streams // count + (number < streams % count) for number in range(count)]
    program = str(build.load_client())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        children = []
        for number, share in enumerate(shares):
            first = sum(shares[:number]) % len(targets)
            file = Path(folder) / f"targets{number}"
            file.write_text("".join(f"{target}\n" for target in [*targets[first:], *targets[:first]]))
            options = [f"source={source + number * _ADDRESSES}", f"tls={tls:d}", f"noread={not read:d}"]
            options.append(f"rcvbuf={receive_buffer}")
            children.append(
                stack.enter_context(running(program, str(port), str(file), *options, stderr=None))
            )
            assert share <= PER_PROCESS
        yield Load(children, shares)
