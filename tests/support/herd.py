"""Thousands of EventSources in one process: each reads one channel, and comes back as browsers do."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from tests.support.deadline import safety_net
from tests.support.eventsource import Message, Parser

AHEAD = 100
"""Connections that are opened at once at the start."""


@dataclass(eq=False)
class Browser(asyncio.Protocol):
    """One EventSource. ``seen`` is what it dispatched, over all of its connections."""

    number: int
    channels: Sequence[str]
    port: int
    seen: list[Message] = field(default_factory=list)
    attempts: int = 0
    """How often it asked for its stream."""
    closed: list[tuple[str, int | None]] = field(default_factory=list)
    """Of each ``stream.close`` the reason, and the delay in milliseconds that came with it."""
    is_open: bool = False
    """Whether it has a stream just now."""
    odd: list[str] = field(default_factory=list)
    """Answers that a browser would give up at."""
    last_id: str = ""
    retry: float = 3.0
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.connected = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def resumes(self) -> int:
        """How often it came back."""
        return self.attempts - 1

    def open(self) -> None:
        """Ask for the stream."""
        if not self.is_closed:
            self._opening = self._loop.create_task(self._open())

    def close(self) -> None:
        """Go, and do not come back."""
        self.is_closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def _open(self) -> None:
        self._head, self._left, self._parser = b"", b"", Parser()
        self.attempts += 1
        try:
            await self._loop.create_connection(lambda: self, "127.0.0.1", self.port)
        except OSError:
            self._loop.call_later(self.retry, self.open)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        resume = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
        path = f"/events?channel={','.join(self.channels)}"
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: gateway\r\n{resume}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if not self._head.endswith(b"\r\n\r\n"):
            head, end, data = (self._head + data).partition(b"\r\n\r\n")
            self._head = head + end
            if not end:
                return
            if b" 200 " not in head[:16] or b"text/event-stream" not in head:
                self.odd.append(head.decode())
                self.close()
                return
        self._left += data
        while (whole := self._chunk()) is not None:
            if not whole:  # the body is over; who keeps the connection open has nothing more to say
                assert self._transport is not None
                self._transport.abort()
                return
            self._take(whole)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport, self.is_open = None, False
        if not self.is_closed:
            self._loop.call_later(self.retry, self.open)

    def _chunk(self) -> bytes | None:
        """Return the next chunk of the body, None while it is not whole."""
        size, end, rest = self._left.partition(b"\r\n")
        if not end or len(rest) < int(size, 16) + 2:
            return None
        self._left = rest[int(size, 16) + 2 :]
        return rest[: int(size, 16)]

    def _take(self, part: bytes) -> None:
        parser = self._parser
        parser.feed(part)
        for message in parser.messages:
            self.seen.append(message)
            if message.type == "stream.open":
                self.is_open = True
                self.connected.set()
            elif message.type == "stream.close":
                self.closed.append((message.json["reason"], parser.retry))
        parser.messages.clear()
        self.last_id = parser.last_id or self.last_id
        if parser.retry is not None:
            self.retry = parser.retry / 1000


async def open_all(browsers: Sequence[Browser]) -> None:
    """Open all of them, some at a time, and wait until each has its stream."""
    for first in range(0, len(browsers), AHEAD):
        group = browsers[first : first + AHEAD]
        async with safety_net():
            for browser in group:
                browser.open()
            for browser in group:
                await browser.connected.wait()
