"""The prober: asks paths again and again, each time on a new connection, as a kubelet or balancer does.

usage: python -m bench.prober PORT RATE PATH...

It says ``ready``; for each line with a number of seconds it probes every path RATE times a second for so
long, and answers with a line of JSON: {path: {"times": [seconds], "odd": answers that were no 200}}. A time
goes from before connect() to the end of the answer.
"""

import json
import socket
import sys
import threading
import time
from typing import Any

_TIMEOUT = 10.0


def main() -> None:
    """Probe as told by the command line and standard input."""
    port, rate, paths = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    print("ready", flush=True)
    for line in sys.stdin:
        told: dict[str, Any] = {}
        threads = [
            threading.Thread(target=_probe, args=(port, rate, path, float(line), number / len(paths), told))
            for number, path in enumerate(paths)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(told), flush=True)


def _probe(port: int, rate: float, path: str, seconds: float, offset: float, told: dict[str, Any]) -> None:
    times: list[float] = []
    odd = 0
    due = time.monotonic() + offset / rate
    end = due + seconds
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        sent = time.monotonic()
        odd += _ask(port, path) != 200
        times.append(time.monotonic() - sent)
        due = max(due + 1 / rate, sent)
    told[path] = {"times": times, "odd": odd}


def _ask(port: int, path: str) -> int:
    """Return the status of one answer, read to its end; 0 where there was none."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as asking:
            asking.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while part := asking.recv(1 << 16):
                answer += part
    except OSError:
        return 0
    return int(answer[9:12] or 0)


if __name__ == "__main__":
    main()
