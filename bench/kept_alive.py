"""A persistent connection for posts: a raw socket, so that the publisher costs next to nothing.

An HTTP client would take CPU from the server in the rows throughput, fanout and redis-herd.
"""

import select
import socket
import ssl

_TIMEOUT = 30.0
"""Seconds that a server may take to answer a post."""


class KeptAlive:
    """One HTTP/1.1 connection to a port of loopback; made anew where the server wants to close it.

    `send` and `answer` may be used apart.
    """

    def __init__(self, port: int, *, tls: bool = False) -> None:
        self._port, self._tls = port, tls
        self._socket: socket.socket | None = None
        self._unread = b""

    def post(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        """Send a post and return the body of its answer. Raises RuntimeError for a status of 300 and up."""
        self.send(path, body, kind)
        return self.answer()

    def send(self, path: str, body: bytes, kind: str = "application/json") -> None:
        """Send a post; its answer must be taken before the next one is sent."""
        if self._socket is not None and select.select([self._socket], [], [], 0)[0]:
            self.close()  # nothing is asked, so what can be read is its end
        if self._socket is None:
            self._socket = self._connect()
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def answer(self) -> bytes:
        """Return the body of the answer that comes next. Raises RuntimeError for a status of 300 and up."""
        head = self._until(b"\r\n\r\n")
        status = int(head[9:12])
        body = self._body(head.lower())
        if b"connection: close" in head.lower():
            self.close()
        if status >= 300:
            raise RuntimeError(f"the server answered {head[9:].splitlines()[0].decode()}: {body!r}")
        return body

    def close(self) -> None:
        """Close the connection. Harmless when repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket, self._unread = None, b""

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._tls:
            return made
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # made for one run
        return context.wrap_socket(made)

    def _body(self, head: bytes) -> bytes:
        if b"transfer-encoding: chunked" not in head:
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            return self._exactly(int(length or 0))
        body = b""
        while size := int(self._until(b"\r\n"), 16):
            body += self._exactly(size + 2)[:-2]
        self._until(b"\r\n")
        return body

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            self._receive()
        found, _, self._unread = self._unread.partition(mark)
        return found

    def _exactly(self, length: int) -> bytes:
        while len(self._unread) < length:
            self._receive()
        found, self._unread = self._unread[:length], self._unread[length:]
        return found

    def _receive(self) -> None:
        assert self._socket is not None
        part = self._socket.recv(1 << 16)
        if not part:
            raise RuntimeError("the server closed the posting connection")
        self._unread += part
