"""One plain stream that collects the ids of events."""

import socket

from bench.servers.base import Server


class Ids:
    """Follows a channel and collects the ids of its events, in order. A context manager."""

    def __init__(self, server: Server, channel: str) -> None:
        self._target = server.target(channel)
        self._socket = socket.create_connection(("127.0.0.1", server.port), 20)
        self._unread = b""

    def __enter__(self) -> "Ids":
        path, *headers = self._target.split("\t")
        lines = [f"GET {path} HTTP/1.1", "Host: bench", "Accept: text/event-stream", *headers, "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        while b"\n\n" not in self._unread:  # the first block: from here on it follows
            self._receive()
        self._unread = self._unread.partition(b"\n\n")[2]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def take(self, count: int) -> list[str]:
        """Wait for the ids of ``count`` events. Raises TimeoutError after 20 s without any."""
        ids: list[str] = []
        while len(ids) < count:
            line, newline, rest = self._unread.partition(b"\n")
            if not newline:
                self._receive()
                continue
            self._unread = rest
            if line.startswith(b"id:"):
                ids.append(line[3:].strip().decode())
        return ids

    def _receive(self) -> None:
        part = self._socket.recv(1 << 16)
        if not part:
            raise RuntimeError("the stream was closed")
        self._unread += part
