"""What a stream said and when: bytes to arrivals, heartbeats and the gateway's own events. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LONGEST_LINE = 1 << 20
"""Bytes of a line that are kept: a server that sends no line end must not fill the memory."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_OPEN, _CLOSE, _HEARTBEAT = "stream.open", "stream.close", "stream.heartbeat"


class End(StrEnum):
    """Why listening ended."""

    TIME = "time"
    """It is still open."""
    ENDED = "ended"
    """The answer's body ended as its framing says."""
    CUT = "cut"
    """The connection broke in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes that came together: ``at`` is in seconds since the request, ``beats`` are its heartbeats."""

    at: float
    size: int
    beats: int


@dataclass(frozen=True, slots=True)
class Opened:
    """What ``stream.open`` said."""

    resume: str


@dataclass(frozen=True, slots=True)
class Heard:
    """One stream, as far as it was listened to. Times are in seconds since the request."""

    head_at: float
    arrivals: Sequence[Arrival]
    over_at: float
    end: End
    opened: Opened | None
    close_reason: str | None
    last_id: str

    @property
    def silences(self) -> list[float]:
        """The seconds between one arrival and the next."""
        return [after.at - before.at for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def last_silence(self) -> float:
        """The seconds from the last arrival, or the head, to the end of listening."""
        return self.over_at - (self.arrivals[-1].at if self.arrivals else self.head_at)


class Ear:
    """Takes the pieces of a body, parsed by WHATWG HTML §9.2.6 as far as a diagnosis needs it."""

    def __init__(self, head_at: float) -> None:
        self._head_at = head_at
        self._arrivals: list[Arrival] = []
        self._rest = b""
        self._type = ""
        self._data: list[str] = []
        self._id = ""
        self._beats = 0
        self.opened: Opened | None = None
        self.close_reason: str | None = None
        self.last_id = ""

    @property
    def has_heard(self) -> bool:
        """Whether any byte of the body came."""
        return bool(self._arrivals)

    @property
    def has_begun(self) -> bool:
        """Whether the first event is whole."""
        return self.opened is not None or self.close_reason is not None

    def feed(self, data: bytes, at: float) -> None:
        """Take a piece that came ``at`` seconds after the request."""
        self._beats = 0
        text = self._rest + data
        whole = text.removesuffix(b"\r")  # an LF may follow, and both are one line end
        *lines, rest = _LINE_END.split(whole)
        self._rest = rest[:LONGEST_LINE] + text[len(whole) :]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))
        self._arrivals.append(Arrival(at, len(data), self._beats))

    def heard(self, over_at: float, end: End) -> Heard:
        """Return all of it, at the end of listening."""
        return Heard(
            self._head_at, tuple(self._arrivals), over_at, end, self.opened, self.close_reason, self.last_id
        )

    def _line(self, line: str) -> None:
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self._beats += 1
        elif name == "event":
            self._type = value
        elif name == "data" and self._type in (_OPEN, _CLOSE, _HEARTBEAT):
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._id = value

    def _dispatch(self) -> None:
        self.last_id = self._id
        if self._type == _HEARTBEAT:
            # One that asks for an answer comes at a time of its own, and is no sign of bytes that were held.
            self._beats += 0 if _word("\n".join(self._data), "nonce") else 1
        elif self._type == _OPEN:
            self.opened = Opened(_word("\n".join(self._data), "resume"))
        elif self._type == _CLOSE:
            self.close_reason = _word("\n".join(self._data), "reason")
        self._type, self._data = "", []


def _word(data: str, name: str) -> str:
    try:
        told = json.loads(data)
    except ValueError:
        return ""
    return str(told.get(name, "")) if isinstance(told, dict) else ""
