"""How long clients wait when the node that reads a source is killed: from the kill to the next event."""

import contextlib
import http.client
import json
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import redis

from bench.process import Process, gateway, redis_server
from bench.scenarios.base import Options, Row, Scenario, Target

ROUNDS = 5


def measure(options: Options) -> Iterator[Row]:
    """Kill the node that reads, of two, under load."""
    waits = [_once() for _ in range(options.pick(ROUNDS, 1))]
    yield Row(
        "sse-gateway",
        None,
        {"median s": statistics.median(waits), "longest s": max(waits)},
        (Target(f"longest {max(waits):.1f} s < 5 s", max(waits) < 5),),
    )


def _once() -> float:
    with redis_server() as server, tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "broker": {"url": f"sqlite:///{folder}/log.db"},
            "sources": {"app": {"type": "redis-pubsub", "url": f"redis://127.0.0.1:{server}"}},
            "channels": {"orders": {"from": [{"source": "app", "topic": "orders"}], "access": "public"}},
        }
        with gateway(config) as one, gateway(config) as two, _publishing(server):
            reader, other = (one, two) if _reads(one[2]) else (two, one)
            with contextlib.closing(socket.create_connection(("127.0.0.1", other[1]), 30)) as stream:
                stream.sendall(b"GET /events/orders HTTP/1.1\r\nHost: b\r\n\r\n")
                _next_event(stream)
                return _wait(reader[0], stream)


def _wait(reader: Process, stream: socket.socket) -> float:
    reader.signal(signal.SIGKILL)
    killed = time.monotonic()
    # What was on its way when the reader died may still come; the one after a pause is the other's.
    last = killed
    while True:
        _next_event(stream)
        now = time.monotonic()
        if now - last > 0.3:
            return now - killed
        last = now


def _next_event(stream: socket.socket) -> None:
    while b'"n"' not in stream.recv(65536):
        pass


@contextlib.contextmanager
def _publishing(port: int) -> Any:
    done = threading.Event()

    def publish() -> None:
        with redis.Redis(port=port) as client:
            while not done.wait(0.01):
                client.publish("orders", '{"n":1}')

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _reads(admin: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        asked = http.client.HTTPConnection("127.0.0.1", admin)
        asked.request("GET", "/status")
        source = json.loads(asked.getresponse().read())["sources"][0]
        asked.close()
        if source["status"] == "up":
            return bool(source["leader"])
        time.sleep(0.1)
    raise RuntimeError("the source does not come up")


SCENARIO = Scenario(
    "takeover",
    "The node that reads a source is killed",
    "Two nodes on one log, one of them reads Redis pub/sub, with an event every 10 ms, and is killed "
    "with SIGKILL. From "
    f"the kill to the next event that a client of the other node gets; {ROUNDS} rounds.",
    measure,
    limit=120,
)
