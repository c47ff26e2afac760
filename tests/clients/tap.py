"""A TCP proxy for one client: it counts connections, and harms them at places that a test names."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_STATUS = re.compile(rb"HTTP/1\.\d (\d{3})")


@dataclass(eq=False)
class Line:
    """One connection."""

    asked: bytes = b""
    """The head of its request."""
    answered: bytes = b""
    """What the gateway sent, as far as it was let through."""
    is_dead: bool = False
    """Nothing more is let through, and nobody told."""
    cut: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int | None:
        """The answer's, if there was one."""
        found = _STATUS.match(self.answered)
        return int(found[1]) if found else None


@dataclass(eq=False)
class Tap:
    """``port`` leads to ``target`` while it is open."""

    target: int
    old_http: bool = False
    """Ask the gateway in HTTP/1.0, as some proxies do: then the end of a cut stream looks like any other end."""
    drips: bool = False
    """Send bodies byte by byte, each in a packet of its own."""
    cuts: list[re.Pattern[bytes]] = field(default_factory=list)
    """Where the next connections are cut, one each: at the end of the first match in what the gateway sends."""
    port: int = 0
    lines: list[Line] = field(default_factory=list)
    """All connections that asked for something."""
    _open: set[Line] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self._left = len(self.cuts)  # that were not made yet

    @property
    def was_cut(self) -> bool:
        """Whether all of ``cuts`` were made, and there is a connection after them."""
        return self._left == 0 and not self.lines[-1].cut.is_set()

    async def open(self) -> None:
        """Listen, on the same port each time."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Refuse connections, and cut those that are open. Harmless when repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def close(self) -> None:
        """End all connections, also those whose first byte has not come yet."""
        self.shut()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cut(self) -> None:
        """End the connections that are open, in the middle of whatever they carry."""
        for line in self._open:
            line.cut.set()

    def die(self) -> None:
        """Let the connections that are open go silent, without an end."""
        for line in self._open:
            line.is_dead = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted by the kernel just before the tap was shut
            writer.transport.abort()
            return
        task = asyncio.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line()
        self._open.add(line)
        ahead: asyncio.StreamWriter | None = None
        try:
            line.asked = await reader.readuntil(b"\r\n\r\n")
            self.lines.append(line)
            cut = self.cuts.pop(0) if self.cuts else None
            back, ahead = await asyncio.open_connection("127.0.0.1", self.target)
            version = b" HTTP/1.0\r\n" if self.old_http else b" HTTP/1.1\r\n"
            ahead.write(line.asked.replace(b" HTTP/1.1\r\n", version, 1))
            ends = (self._answer(line, back, writer, cut), _forward(reader, ahead), line.cut.wait())
            tasks = [asyncio.ensure_future(end) for end in ends]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(line)
            if ahead is not None:
                ahead.transport.abort()
            writer.close()

    async def _answer(
        self,
        line: Line,
        back: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        cut: re.Pattern[bytes] | None,
    ) -> None:
        while part := await back.read(65536):
            if line.is_dead:
                continue
            found = cut.search(line.answered + part) if cut is not None else None
            if found is not None:
                part = part[: found.end() - len(line.answered)]
            line.answered += part
            if self.drips and not part.startswith(b"HTTP/"):
                for at in range(len(part)):
                    writer.write(part[at : at + 1])
                    await asyncio.sleep(0.001)
            else:
                writer.write(part)
            if found is not None:
                self._left -= 1
                line.cut.set()
                return


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry what else a client sends: a browser asks for the stream on the connection of its preflight."""
    while part := await reader.read(65536):
        writer.write(part)


@asynccontextmanager
async def tapped(*taps: Tap) -> AsyncIterator[tuple[Tap, ...]]:
    """Keep taps open."""
    try:
        for tap in taps:
            await tap.open()
        yield taps
    finally:
        for tap in taps:
            await tap.close()
