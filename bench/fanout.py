"""One event to many idle streams: memory per stream, and CPU per delivery against a bare C send() loop."""

import http.client
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.process import Process, build_send_loop, clients, free_port, running, wait_for_port

STREAMS = 5000
ROUNDS = 7
EVENTS = 10
"""Events per round, one after the other: each must have arrived everywhere before the next."""

PAYLOAD = json.dumps({"order": 1, "text": "x" * 76}).encode()
"""About a hundred bytes."""

_CONFIG = """
server: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{admin}"}}
log: {{level: warning}}
cors: {{origins: ["https://*.example.com"]}}
sources: {{hooks: {{type: webhook, verify: {{none: true}}}}}}
channels:
  orders: {{from: [{{source: hooks, topic: orders}}], access: public}}
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run measured."""

    streams: int
    bytes_per_stream: float
    gateway_us: float
    loop_us: float

    @property
    def ratio(self) -> float:
        """CPU per delivery of the gateway over that of the C loop."""
        return self.gateway_us / self.loop_us


def measure(streams: int = STREAMS) -> Result:
    """Run both servers side by side with ``streams`` clients each, in alternating rounds."""
    port, admin, loop_port = free_port(), free_port(), free_port()
    program = build_send_loop()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.yaml"
        config.write_text(_CONFIG.format(port=port, admin=admin))
        with (
            running(sys.executable, "-m", "gateway", "run", "--config", str(config)) as gateway,
            running(str(program), str(loop_port)) as loop,
        ):
            wait_for_port(port)
            loop.answer()
            with clients(port, "/events/orders", 100) as first:  # pools and caches are filled once
                first.answer()
            before = gateway.pss()
            with clients(port, "/events/orders", streams) as ours, clients(loop_port, "/", streams) as theirs:
                ours.answer()
                per_stream = (gateway.pss() - before) / streams
                loop.tell(f"wait {streams}")
                loop.answer()
                theirs.answer()
                return _rounds(gateway, loop, ours, theirs, port, streams, per_stream)


def _rounds(
    gateway: Process,
    loop: Process,
    ours: Process,
    theirs: Process,
    port: int,
    streams: int,
    per_stream: float,
) -> Result:
    hook = http.client.HTTPConnection("127.0.0.1", port)
    ours_us, theirs_us = [], []
    ours.tell(f"await {streams}")
    length = _post(hook)
    _arrived(ours)
    for _ in range(ROUNDS):
        start = gateway.cpu()
        for _ in range(EVENTS):
            ours.tell(f"await {streams}")  # first, so that both servers send to a client that waits
            _post(hook)
            _arrived(ours)
        ours_us.append((gateway.cpu() - start) / (streams * EVENTS) * 1e6)
        start = loop.cpu()
        for _ in range(EVENTS):
            theirs.tell(f"await {streams}")
            loop.tell(f"send 1 {length}")
            loop.answer()
            _arrived(theirs)
        theirs_us.append((loop.cpu() - start) / (streams * EVENTS) * 1e6)
    hook.close()
    return Result(streams, per_stream, statistics.median(ours_us), statistics.median(theirs_us))


def _post(hook: http.client.HTTPConnection) -> int:
    """Post one event and return how many bytes it is on a stream, chunk framing included."""
    hook.request("POST", "/hooks/hooks?topic=orders", PAYLOAD)
    answer = hook.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"the gateway answered {answer.status}: {body!r}")
    id = json.loads(body)["ids"][0]
    envelope = f'{{"channel":"orders","id":"{id}","type":null,"timestamp":{id.split("-")[0]},"payload":'
    block = len(f"data: {envelope}}}\nid: {id}\n\n") + len(PAYLOAD)
    return block + len(f"{block:x}\r\n\r\n")


def _arrived(client: Process) -> None:
    answer = client.answer()
    if not answer.startswith("got"):
        raise RuntimeError(f"not all events arrived within the client's time: {answer}")
