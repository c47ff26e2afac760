"""Parses the bytes of an event stream to messages, as WHATWG HTML §9.2.6 defines it. Pure."""

import re
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Longest message, in bytes: a server that never ends one must not exhaust the memory."""

MAX_RETRY_MS = 600_000
"""Longest reconnect delay, in milliseconds; a larger one is reduced to it."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


class MessageTooLong(ValueError):
    """A message exceeds `MAX_MESSAGE_BYTES`."""


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One dispatched event; ``id`` is the last event id after it, from which a client resumes."""

    type: str
    data: str
    id: str


class SseParser:
    """Parses a body in pieces; an unfinished message at the end is not dispatched."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        """The last event id; that of an unfinished message does not count."""
        self.retry_ms: int | None = None
        """The server's latest reconnect delay, in milliseconds."""
        self._pending_id = last_id
        self._partial_line = b""
        self._type = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._is_at_start = True

    def feed(self, data: bytes) -> list[SseMessage]:
        """Parse a piece, and return the messages that end in it. Raises MessageTooLong."""
        text = self._partial_line + data
        whole = text.removesuffix(b"\r")  # an LF may follow, and both are one line end
        *lines, rest = _LINE_END.split(whole)
        self._partial_line = rest + text[len(whole) :]
        found = [message for line in lines if (message := self._process_line(line)) is not None]
        if self._data_bytes + len(self._partial_line) > MAX_MESSAGE_BYTES:
            raise MessageTooLong(f"a message is longer than {MAX_MESSAGE_BYTES} bytes")
        return found

    def _process_line(self, raw: bytes) -> SseMessage | None:
        line = raw.decode("utf-8", "replace")
        if self._is_at_start:
            self._is_at_start = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
            self._data_bytes += len(raw)
        elif name == "id" and "\0" not in value:
            self._pending_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = min(int(value[:12]), MAX_RETRY_MS)
        return None

    def _dispatch(self) -> SseMessage | None:
        self.last_id = self._pending_id
        type_, data = self._type, self._data
        self._type, self._data, self._data_bytes = "", [], 0
        return SseMessage(type_ or "message", "\n".join(data), self.last_id) if data else None
