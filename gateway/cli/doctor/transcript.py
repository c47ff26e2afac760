"""Records a stream: the times of its bytes, its heartbeats and its control events. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.core.sse_parser import MessageTooLong, SseParser

MAX_MESSAGE_BYTES = 1 << 20
"""Bytes of an incomplete message that are kept: control events are shorter, and others are only counted."""


class EndReason(StrEnum):
    """Reason why listening ended."""

    STILL_OPEN = "time"
    """The time was up; the stream is still open."""
    BODY_ENDED = "ended"
    """The body ended as its framing allows."""
    CONNECTION_LOST = "cut"
    """The connection broke within the body."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes that were read at once, with the heartbeats among them; the time is since the request."""

    at_seconds: float
    size_bytes: int
    heartbeats: int


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """The data of ``stream.open``."""

    resume: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """One stream up to the end of listening. Times are in seconds since the request."""

    head_at_seconds: float
    arrivals: Sequence[Arrival]
    end_at_seconds: float
    end_reason: EndReason
    open_event: OpenEvent | None
    close_reason: str | None
    last_id: str

    @property
    def silences(self) -> list[float]:
        """Seconds between each arrival and the next."""
        return [
            after.at_seconds - before.at_seconds
            for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)
        ]

    @property
    def last_silence(self) -> float:
        """Seconds from the last arrival, or the head, to the end of listening."""
        return self.end_at_seconds - (self.arrivals[-1].at_seconds if self.arrivals else self.head_at_seconds)


class TranscriptRecorder:
    """Records the pieces of a body with their times, and parses them."""

    def __init__(self, head_at_seconds: float) -> None:
        self._head_at_seconds = head_at_seconds
        self._arrivals: list[Arrival] = []
        self._parser = SseParser(max_message_bytes=MAX_MESSAGE_BYTES)
        self.open_event: OpenEvent | None = None
        self.close_reason: str | None = None

    @property
    def has_first_event(self) -> bool:
        """Whether the first event is complete."""
        return self.open_event is not None or self.close_reason is not None

    def feed(self, data: bytes, at_seconds: float) -> None:
        """Take a piece that arrived ``at_seconds`` after the request."""
        heartbeats = -self._parser.comments
        try:
            messages = self._parser.feed(data)
        except MessageTooLong:  # only its end matters here
            self._parser = SseParser(self._parser.last_id, MAX_MESSAGE_BYTES)
            heartbeats, messages = 0, []
        for message in messages:
            if message.type == "stream.heartbeat":
                # One with a nonce is sent at its own time: behind another it is no sign of buffering.
                heartbeats += not _json_field(message.data, "nonce")
            elif message.type == "stream.open":
                self.open_event = OpenEvent(_json_field(message.data, "resume"))
            elif message.type == "stream.close":
                self.close_reason = _json_field(message.data, "reason")
        self._arrivals.append(Arrival(at_seconds, len(data), heartbeats + self._parser.comments))

    def finish(self, end_at_seconds: float, end_reason: EndReason) -> Transcript:
        """Return the transcript up to the end of listening."""
        return Transcript(
            self._head_at_seconds,
            tuple(self._arrivals),
            end_at_seconds,
            end_reason,
            self.open_event,
            self.close_reason,
            self._parser.last_id,
        )


def _json_field(data: str, name: str) -> str:
    try:
        members = json.loads(data)
    except ValueError:
        return ""
    return str(members.get(name, "")) if isinstance(members, dict) else ""
