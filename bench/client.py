"""The load client: holds many streams and counts what arrives, cheaply enough not to be the bottleneck.

usage: python -m bench.client PORT PATH COUNT

It opens COUNT streams to 127.0.0.1, from several 127.0.0.x addresses, says ``open SECONDS``, and then
answers each line ``await N`` on stdin with ``got SECONDS`` once N more events have arrived in total
(or ``late GOT`` after 30 s). An event is one blank line.
"""

import resource
import select
import socket
import sys
import time

PER_ADDRESS = 10_000
AT_ONCE = 500
_IP_BIND_ADDRESS_NO_PORT = 24


def connect(port: int, path: str, count: int) -> tuple[select.epoll, dict[int, socket.socket]]:
    """Open the streams, at most `AT_ONCE` handshakes under way, and wait for each one's first block."""
    poll = select.epoll()
    streams: dict[int, socket.socket] = {}
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode()
    for first in range(0, count, AT_ONCE):
        group = []
        for number in range(first, min(first + AT_ONCE, count)):
            stream = socket.socket()
            stream.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            stream.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
            stream.connect(("127.0.0.1", port))
            stream.sendall(request)
            group.append(stream)
        for stream in group:
            head = b""
            while b"\r\n\r\n" not in head:
                part = stream.recv(4096)
                if not part:
                    raise ConnectionError(f"refused: {head!r}")
                head += part
            if b" 200 " not in head.split(b"\r\n")[0]:
                raise ConnectionError(f"refused: {head!r}")
            stream.setblocking(False)
            poll.register(stream.fileno(), select.EPOLLIN)
            streams[stream.fileno()] = stream
    return poll, streams


def await_events(poll: select.epoll, streams: dict[int, socket.socket], wanted: int) -> str:
    """Read until ``wanted`` events have come."""
    buffer = bytearray(256 * 1024)
    view = memoryview(buffer)
    got, started = 0, time.monotonic()
    while got < wanted:
        if time.monotonic() - started > 30:
            return f"late {got}"
        for fd, _ in poll.poll(0.5):
            try:
                size = streams[fd].recv_into(buffer)
            except BlockingIOError:
                continue
            if size == 0:
                raise ConnectionError("a stream was closed")
            got += bytes(view[:size]).count(b"\n\n")
    return f"got {time.monotonic() - started:.6f}"


def main() -> None:
    """Follow the commands on stdin until it is closed."""
    port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started = time.monotonic()
    poll, streams = connect(port, path, count)
    print(f"open {time.monotonic() - started:.6f}", flush=True)
    for line in sys.stdin:
        print(await_events(poll, streams, int(line.split()[1])), flush=True)


if __name__ == "__main__":
    main()
