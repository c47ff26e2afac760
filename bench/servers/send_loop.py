"""The bare C send() loop: not a server, but what no server can go below."""

import contextlib
import time
from collections.abc import Iterator, Sequence

from bench import build
from bench.process import Process, free_port, running
from bench.servers.base import Server, Setup


class SendLoop(Server):
    """One send() per stream and event, of the bytes that the gateway would send."""

    name = "C send() loop"
    version = "bare"

    def __init__(self, setup: Setup, port: int, process: Process) -> None:
        super().__init__(setup, port, [process])
        self._process = process

    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return any path: it does not look."""
        return "/"

    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Send each to all streams, one after the other, and return when all were sent."""
        for payload in payloads:
            now = time.time_ns() // 1_000_000
            head = f'data: {{"channel":"{channel}","id":"{now}-0","type":null,"timestamp":{now},"payload":'
            event = head.encode() + payload + f"}}\nid: {now}-0\n\n".encode()
            chunk = f"{len(event):x}\r\n".encode() + event + b"\r\n"
            self._process.tell(f"send {len(chunk)}", chunk)
            self._process.answer()

    def expect_streams(self, streams: int) -> None:
        """Let it accept so many in all."""
        self._process.tell(f"wait {streams}")

    def streams_are_open(self) -> None:
        """Wait until it has them."""
        self._process.answer()


@contextlib.contextmanager
def start(setup: Setup) -> Iterator[Server]:
    """Run the loop."""
    port = free_port()
    with running(str(build.send_loop()), str(port)) as process:
        process.answer()
        yield SendLoop(setup, port, process)
