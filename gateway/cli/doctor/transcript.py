"""What a stream said and when: bytes to arrivals, heartbeats and the gateway's own events. Pure."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_LINE_BYTES = 1 << 20
"""Bytes of a line that are kept: a server that sends no line end must not fill the memory."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_OPEN, _CLOSE, _HEARTBEAT = "stream.open", "stream.close", "stream.heartbeat"


class EndReason(StrEnum):
    """Why listening ended."""

    STILL_OPEN = "time"
    """It is still open."""
    BODY_ENDED = "ended"
    """The answer's body ended as its framing says."""
    CONNECTION_LOST = "cut"
    """The connection broke in the middle of the body."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes that came together: ``at`` is in seconds since the request, ``beats`` are its heartbeats."""

    at_seconds: float
    size_bytes: int
    heartbeats: int


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """What ``stream.open`` said."""

    resume: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """One stream, as far as it was listened to. Times are in seconds since the request."""

    head_at_seconds: float
    arrivals: Sequence[Arrival]
    end_at_seconds: float
    end_reason: EndReason
    open_event: OpenEvent | None
    close_reason: str | None
    last_id: str

    @property
    def silences(self) -> list[float]:
        """The seconds between one arrival and the next."""
        return [
            after.at_seconds - before.at_seconds
            for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)
        ]

    @property
    def last_silence(self) -> float:
        """The seconds from the last arrival, or the head, to the end of listening."""
        return self.end_at_seconds - (self.arrivals[-1].at_seconds if self.arrivals else self.head_at_seconds)


class TranscriptRecorder:
    """Takes the pieces of a body, parsed by WHATWG HTML §9.2.6 as far as a diagnosis needs it."""

    def __init__(self, head_at_seconds: float) -> None:
        self._head_at_seconds = head_at_seconds
        self._arrivals: list[Arrival] = []
        self._partial_line = b""
        self._type = ""
        self._data: list[str] = []
        self._id = ""
        self._heartbeats = 0
        self.open_event: OpenEvent | None = None
        self.close_reason: str | None = None
        self.last_id = ""

    @property
    def has_data(self) -> bool:
        """Whether any byte of the body came."""
        return bool(self._arrivals)

    @property
    def has_first_event(self) -> bool:
        """Whether the first event is whole."""
        return self.open_event is not None or self.close_reason is not None

    def feed(self, data: bytes, at_seconds: float) -> None:
        """Take a piece that came ``at`` seconds after the request."""
        self._heartbeats = 0
        text = self._partial_line + data
        whole = text.removesuffix(b"\r")  # an LF may follow, and both are one line end
        *lines, rest = _LINE_END.split(whole)
        self._partial_line = rest[:MAX_LINE_BYTES] + text[len(whole) :]
        for line in lines:
            self._parse_line(line.decode("utf-8", "replace"))
        self._arrivals.append(Arrival(at_seconds, len(data), self._heartbeats))

    def finish(self, end_at_seconds: float, end_reason: EndReason) -> Transcript:
        """Return all of it, at the end of listening."""
        return Transcript(
            self._head_at_seconds,
            tuple(self._arrivals),
            end_at_seconds,
            end_reason,
            self.open_event,
            self.close_reason,
            self.last_id,
        )

    def _parse_line(self, line: str) -> None:
        if not line:
            self._dispatch()
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self._heartbeats += 1
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
            self._heartbeats += 0 if _json_field("\n".join(self._data), "nonce") else 1
        elif self._type == _OPEN:
            self.open_event = OpenEvent(_json_field("\n".join(self._data), "resume"))
        elif self._type == _CLOSE:
            self.close_reason = _json_field("\n".join(self._data), "reason")
        self._type, self._data = "", []


def _json_field(data: str, name: str) -> str:
    try:
        told = json.loads(data)
    except ValueError:
        return ""
    return str(told.get(name, "")) if isinstance(told, dict) else ""
