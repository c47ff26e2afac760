"""A gateway process whose every word is kept: for tests that look for what nobody may see."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from tests.support.deadline import safety_net


class Seen:
    """A gateway process, and everything that anybody could see of it."""

    def __init__(self, folder: Path, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self.folder = folder
        self.process = process
        self.ports = ports
        self.answers: list[tuple[str, bytes]] = []

    async def send(self, port: str, data: str) -> bytes:
        """Send a request as it is, and keep the answer: up to the first block of a stream, else whole."""
        raw = data.encode("utf-8", "surrogateescape")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[port])
        writer.write(raw)
        answer = b""
        async with safety_net():
            while not (b"stream.open" in answer and answer.endswith(b"\n\n\r\n")):
                try:
                    part = await reader.read(65536)
                except ConnectionError:
                    break
                if not part:
                    break
                answer += part
        writer.transport.abort()
        self.answers.append((raw[:300].decode("latin-1"), answer))
        return answer

    async def ask(
        self, target: str, method: str = "GET", body: str = "", port: str = "public", **headers: str
    ) -> int:
        """Send a request and return the status."""
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        length = (
            f"Content-Length: {len(body.encode(errors='surrogateescape'))}\r\n"
            if body or method == "POST"
            else ""
        )
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}{''.join(lines)}\r\n"
        return int((await self.send(port, head + body)).split()[1])

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield what it wrote, what it answered, and its command lines."""
        for name in ("stdout", "stderr"):
            yield name, (self.folder / name).read_text()
        for request, answer in self.answers:
            yield request, answer.decode("latin-1")

    def command_lines(self) -> Iterator[str]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *children):
            yield Path(f"/proc/{each}/cmdline").read_text()
