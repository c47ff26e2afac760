"""One stream that collects the ids of its events."""

from http.client import HTTPConnection

from bench.servers.base import Server
from gateway.core.sse_parser import SseParser


class EventIdReader:
    """Follows a channel and collects the ids of its events, in order. A context manager."""

    def __init__(self, server: Server, channel: str) -> None:
        self._target = server.target(channel)
        self._connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        self._parser = SseParser()
        self._ids: list[str] = []

    def __enter__(self) -> "EventIdReader":
        path, *lines = self._target.split("\t")
        headers = dict(line.split(": ", 1) for line in lines)
        self._connection.request("GET", path, headers={"Accept": "text/event-stream", **headers})
        self._response = self._connection.getresponse()
        head = b""
        while b"\n\n" not in head:  # live from the first block on
            head += self._receive()
        self._feed(head.partition(b"\n\n")[2])
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def take(self, count: int) -> list[str]:
        """Wait for the ids of ``count`` events. Raises TimeoutError after 20 s without any."""
        while len(self._ids) < count:
            self._feed(self._receive())
        taken, self._ids = self._ids[:count], self._ids[count:]
        return taken

    def _feed(self, data: bytes) -> None:
        self._ids += [message.id for message in self._parser.feed(data)]

    def _receive(self) -> bytes:
        part = self._response.read1(1 << 16)
        if not part:
            raise RuntimeError("the stream was closed")
        return part
