"""One event to many idle streams: memory per stream, and CPU per delivery against a bare C send() loop."""

import http.client
import json
import statistics
from dataclasses import dataclass

from bench.process import Process, build_send_loop, clients, free_port, gateway, running

STREAMS = 5000
ROUNDS = 7
EVENTS = 10
"""Events per round, one after the other: each must have arrived everywhere before the next."""

PAYLOAD = json.dumps({"order": 1, "text": "x" * 76}).encode()
"""About a hundred bytes."""

_CONFIG = {
    "cors": {"origins": ["https://*.example.com"]},
    "sources": {"hooks": {"type": "webhook", "verify": {"none": True}}},
    "channels": {"orders": {"from": [{"source": "hooks", "topic": "orders"}], "access": "public"}},
}


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
    loop_port = free_port()
    program = build_send_loop()
    with gateway(_CONFIG) as (server, port, _), running(str(program), str(loop_port)) as loop:
        loop.answer()
        with clients(port, 100, "/events/orders") as first:  # pools and caches are filled once
            first.answer()
        before = server.pss()
        with clients(port, streams, "/events/orders") as ours, clients(loop_port, streams, "/") as theirs:
            ours.answer()
            per_stream = (server.pss() - before) / streams
            loop.tell(f"wait {streams}")
            loop.answer()
            theirs.answer()
            return _rounds(server, loop, ours, theirs, port, streams, per_stream)


def _rounds(
    server: Process,
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
        start = server.cpu()
        for _ in range(EVENTS):
            ours.tell(f"await {streams}")  # first, so that both servers send to a client that waits
            _post(hook)
            _arrived(ours)
        ours_us.append((server.cpu() - start) / (streams * EVENTS) * 1e6)
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
