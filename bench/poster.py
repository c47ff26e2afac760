"""The posting client: kept-alive connections that each send the next post once the last one is answered.

usage: python -m bench.poster PORT PATH CONNECTIONS POSTS BODY_FILE

It connects and says ``ready``; at any line on stdin it posts, and says ``done SECONDS``. It reads only the
length of a response: an HTTP client would be slower than the server in the row ingest.
"""

import select
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    """Post as told by the command line."""
    port, path, connections, posts, file = sys.argv[1:]
    body = Path(file).read_bytes()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: b",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    head = "\r\n".join([*lines, "", ""])
    request = head.encode() + body
    sockets = {}
    poll = select.epoll()
    for _ in range(int(connections)):
        each = socket.create_connection(("127.0.0.1", int(port)))
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(each.fileno(), select.EPOLLIN)
        sockets[each.fileno()] = each
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    left, waiting = int(posts), 0
    for each in sockets.values():
        each.sendall(request)
        left, waiting = left - 1, waiting + 1
    rest = dict.fromkeys(sockets, b"")
    while waiting:
        for number, _ in poll.poll(10):
            answer = rest[number] + sockets[number].recv(1 << 20)
            if not _is_whole(answer):
                rest[number] = answer
                continue
            rest[number] = b""
            waiting -= 1
            if left > 0:
                sockets[number].sendall(request)
                left, waiting = left - 1, waiting + 1
    print("done", time.monotonic() - started, flush=True)


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length)


if __name__ == "__main__":
    main()
