"""Bytes of an event stream to messages: WHATWG HTML §9.2.6, to the letter. Pure."""

import re
from dataclasses import dataclass

LONGEST = 64 * 1024 * 1024
"""Bytes of one message that are kept: a server that never ends one must not fill the memory."""

MOST_RETRY_MS = 600_000
"""Longest reconnect delay that is believed, in milliseconds."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


class TooLong(ValueError):
    """A message that does not end."""


@dataclass(frozen=True, slots=True)
class Message:
    """One dispatched event; ``id`` is the last event id after it, which is what a client resumes from."""

    type: str
    data: str
    id: str


class Parser:
    """Takes a body in pieces. What a broken connection left unfinished is dropped with the parser."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        """The last event id: that of a torn message never counts."""
        self.retry_ms: int | None = None
        """The reconnect delay that the server told last."""
        self._id = last_id
        self._rest = b""
        self._type = ""
        self._data: list[str] = []
        self._held = 0
        self._at_begin = True

    def feed(self, data: bytes) -> list[Message]:
        """Take a piece and return the messages that it ended. Raises TooLong."""
        text = self._rest + data
        whole = text.removesuffix(b"\r")  # an LF may follow, and both are one line end
        *lines, rest = _LINE_END.split(whole)
        self._rest = rest + text[len(whole) :]
        found = [message for line in lines if (message := self._line(line)) is not None]
        if self._held + len(self._rest) > LONGEST:
            raise TooLong(f"a message is longer than {LONGEST} bytes")
        return found

    def _line(self, raw: bytes) -> Message | None:
        line = raw.decode("utf-8", "replace")
        if self._at_begin:
            self._at_begin = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data.append(value)
            self._held += len(raw)
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = min(int(value[:12]), MOST_RETRY_MS)
        return None

    def _dispatch(self) -> Message | None:
        self.last_id = self._id
        type_, data = self._type, self._data
        self._type, self._data, self._held = "", [], 0
        return Message(type_ or "message", "\n".join(data), self.last_id) if data else None
