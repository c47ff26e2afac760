"""The load client: holds many streams and counts what arrives, cheaply enough not to be the bottleneck.

usage: python -m bench.client PORT COUNT PATH [PATH …]

It opens COUNT streams to 127.0.0.1, from several 127.0.0.x addresses, each on the next of the paths, and
says ``open SECONDS EVENTS``: how long it took, and how many events came with the first bytes. Then it answers
each line ``await N`` on stdin with ``got SECONDS`` once N more events have arrived in total (or ``late GOT``
after 30 s), and each line ``stamps N`` with ``got P50 P99 MAX``, the seconds between the event's stamp
(``"t":<nanoseconds of the monotonic clock>``) and its arrival. An event is one blank line.
"""

import resource
import select
import socket
import sys
import time
from collections.abc import Sequence

PER_ADDRESS = 10_000
AT_ONCE = 500
_IP_BIND_ADDRESS_NO_PORT = 24


def connect(
    port: int, paths: Sequence[str], count: int
) -> tuple[select.epoll, dict[int, socket.socket], int]:
    """Open the streams, at most `AT_ONCE` handshakes under way, and wait for each one's first block."""
    poll = select.epoll()
    streams: dict[int, socket.socket] = {}
    early = 0
    for first in range(0, count, AT_ONCE):
        group = []
        for number in range(first, min(first + AT_ONCE, count)):
            stream = socket.socket()
            stream.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            stream.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
            stream.connect(("127.0.0.1", port))
            path = paths[number % len(paths)]
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: b\r\nAccept: text/event-stream\r\n\r\n".encode())
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
            early += head.count(b"\n\n")
            stream.setblocking(False)
            poll.register(stream.fileno(), select.EPOLLIN)
            streams[stream.fileno()] = stream
    return poll, streams, early


def await_events(poll: select.epoll, streams: dict[int, socket.socket], wanted: int) -> str:
    """Read until ``wanted`` events have come."""
    buffer = bytearray(256 * 1024)
    view = memoryview(buffer)
    got, started = 0, time.monotonic()
    cut: set[int] = set()
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
            # A blank line may be cut in two by the network.
            got += fd in cut and buffer[0] == 10
            (cut.add if buffer[size - 1] == 10 and buffer[size - 2 : size] != b"\n\n" else cut.discard)(fd)
    return f"got {time.monotonic() - started:.6f}"


def await_stamps(poll: select.epoll, streams: dict[int, socket.socket], wanted: int) -> str:
    """Read until ``wanted`` stamped events have come, and say how old they were."""
    ages: list[float] = []
    while len(ages) < wanted:
        ready = poll.poll(30)
        if not ready:
            return f"late {len(ages)}"
        for fd, _ in ready:
            data = streams[fd].recv(65536)
            now = time.monotonic_ns()
            stamps = data.split(b'"t":')[1:]
            ages += [(now - int(stamp[: stamp.index(b"}")])) / 1e9 for stamp in stamps]
    ages.sort()
    return f"got {ages[len(ages) // 2]:.6f} {ages[len(ages) * 99 // 100]:.6f} {ages[-1]:.6f}"


def main() -> None:
    """Follow the commands on stdin until it is closed."""
    port, count, paths = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    started = time.monotonic()
    poll, streams, early = connect(port, paths, count)
    print(f"open {time.monotonic() - started:.6f} {early}", flush=True)
    for line in sys.stdin:
        command, number = line.split()
        read = await_stamps if command == "stamps" else await_events
        print(read(poll, streams, int(number)), flush=True)


if __name__ == "__main__":
    main()
