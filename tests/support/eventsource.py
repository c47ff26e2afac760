"""A client of our own: raw sockets, so that tests see every byte, and the WHATWG parser, to the letter."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.support.deadline import safety_net


@dataclass(frozen=True)
class Message:
    """One dispatched event, or a block that set only the id or the retry delay (``data`` None)."""

    type: str
    data: str | None
    id: str
    """The last event id after this block, which is what a client would resume from."""

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.data or "")


class Parser:
    """WHATWG HTML §9.2.6, for a stream that comes in pieces."""

    def __init__(self) -> None:
        self._text = b""
        self._data: list[str] = []
        self._type = ""
        self._id = ""
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self.messages: list[Message] = []

    def feed(self, data: bytes) -> None:
        self._text += data
        while True:
            ends = [at for at in (self._text.find(b"\n"), self._text.find(b"\r")) if at >= 0]
            if not ends:
                return
            at = min(ends)
            if self._text[at : at + 1] == b"\r" and at + 1 == len(self._text):
                return  # an LF may follow
            width = 2 if self._text[at : at + 2] == b"\r\n" else 1
            line, self._text = self._text[:at].decode(), self._text[at + width :]
            self._line(line)

    @property
    def torn(self) -> bool:
        """Whether the stream stopped in the middle of an event."""
        return bool(self._text or self._data or self._type)

    def _line(self, line: str) -> None:
        if not line:
            self.last_id = self._id
            if self._data:
                self.messages.append(Message(self._type or "message", "\n".join(self._data), self.last_id))
            self._data, self._type = [], ""
            return
        if line.startswith(":"):
            self.comments += 1
            return
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._type = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isdigit():
            self.retry = int(value)


class Stream:
    """One open stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.size = 0
        """Bytes of the body as they were on the wire, transfer framing included."""
        self.parser = Parser()
        self.ended = False
        """The body ended as its framing says: with the last chunk."""
        self._seen = 0

    @classmethod
    async def open(
        cls,
        port: int,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        version: str = "1.1",
        ssl: Any = None,
        source: str | None = None,
    ) -> "Stream":
        """Ask for a path, from an address of this machine, and read the answer's head."""
        own = None if source is None else (source, 0)
        stream = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=ssl, local_addr=own))
        lines = [f"GET {path} HTTP/{version}"]
        lines += [f"{name}: {value}" for name, value in ({"Host": "gateway"} | (headers or {})).items()]
        stream.writer.write("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"))
        async with safety_net():
            head = (await stream._reader.readuntil(b"\r\n\r\n")).decode()
        status, *fields = head.rstrip("\r\n").split("\r\n")
        stream.status = int(status.split()[1])
        stream.headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        return stream

    @property
    def messages(self) -> list[Message]:
        return self.parser.messages

    async def read(self) -> bool:
        """Read one piece of the body; False at its end."""
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                line = await self._reader.readuntil(b"\r\n")
                size = int(line[:-2], 16)
                part = await self._reader.readexactly(size + 2)
                self.size += len(line) + len(part)
                assert part.endswith(b"\r\n"), "a chunk ends with CRLF"
                part = part[:-2]
                self.ended = self.ended or size == 0
            else:
                left = int(self.headers.get("content-length", 1 << 30)) - len(self.body)
                part = await self._reader.read(left)
                self.size += len(part)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        if not part:
            return False
        self.body += part
        self.parser.feed(part)
        return True

    async def next(self) -> Message:
        """Return the next message, reading as far as needed."""
        async with safety_net():
            while self._seen >= len(self.messages):
                assert await self.read(), f"the stream ended; it sent {self.body!r}"
        self._seen += 1
        return self.messages[self._seen - 1]

    async def until(self, type: str) -> Message:
        """Return the next message of a type, passing over others."""
        while (message := await self.next()).type != type:
            pass
        return message

    async def rest(self) -> bytes:
        """Read to the end and return the whole body."""
        async with safety_net():
            while await self.read():
                pass
        return self.body

    def close(self) -> None:
        """Go away, rudely: no last words."""
        self.writer.transport.abort()
