"""Bytes of an event stream to messages: WHATWG HTML §9.2.6, to the letter. Pure."""

import re
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Bytes of one message that are kept: a server that never ends one must not fill the memory."""

MAX_RETRY_MS = 600_000
"""Longest reconnect delay that is believed, in milliseconds."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


class MessageTooLong(ValueError):
    """A message that does not end."""


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One dispatched event; ``id`` is the last event id after it, which is what a client resumes from."""

    type: str
    data: str
    id: str


class SseParser:
    """Takes a body in pieces. What a broken connection left unfinished is dropped with the parser."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        """The last event id: that of a torn message never counts."""
        self.retry_ms: int | None = None
        """The reconnect delay that the server told last."""
        self._pending_id = last_id
        self._partial_line = b""
        self._type = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._is_at_start = True

    def feed(self, data: bytes) -> list[SseMessage]:
        """Take a piece and return the messages that it ended. Raises TooLong."""
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
