"""Parses the bytes of an event stream into messages, by WHATWG HTML §9.2.6. Pure."""

import re
from dataclasses import dataclass

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Default limit of one message: a server that never ends it must not fill the memory."""

MAX_RETRY_MS = 600_000
"""Longest reconnect delay that is accepted, in milliseconds."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


class MessageTooLong(ValueError):
    """A message is over the limit of `SseParser`."""


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One dispatched event; ``id`` is the last event id after it, from which a client resumes."""

    type: str
    data: str
    id: str


class SseParser:
    """Takes a body in pieces. A message that a broken connection cut off is dropped with the parser.

    ``max_message_bytes`` is `MAX_MESSAGE_BYTES` by default.
    """

    def __init__(self, last_id: str = "", max_message_bytes: int | None = None) -> None:
        self.last_id = last_id
        """The last event id; the id of an incomplete message does not count."""
        self.retry_ms: int | None = None
        """The last reconnect delay of the server."""
        self.comments = 0
        """Comment lines so far."""
        self._max_message_bytes = MAX_MESSAGE_BYTES if max_message_bytes is None else max_message_bytes
        self._pending_id = last_id
        self._partial_line = b""
        self._type = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._is_at_start = True

    def feed(self, data: bytes) -> list[SseMessage]:
        """Take a piece and return the messages that it completes. Raises MessageTooLong."""
        text = self._partial_line + data
        whole = text.removesuffix(b"\r")  # an LF may follow: CRLF is one line end
        *lines, rest = _LINE_END.split(whole)
        self._partial_line = rest + text[len(whole) :]
        found = [message for line in lines if (message := self._process_line(line)) is not None]
        if self._data_bytes + len(self._partial_line) > self._max_message_bytes:
            raise MessageTooLong(f"a message is longer than {self._max_message_bytes} bytes")
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
        if not name:
            self.comments += 1
        elif name == "event":
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
