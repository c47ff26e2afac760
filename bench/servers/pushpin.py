"""Pushpin, from Debian: it holds the streams, an origin names their channels, events come by a port."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.process import Process, free_port, running, wait_for_port
from bench.servers.base import MissingError, Server, Setup

# Its limits on messages and connections are lifted; nothing is logged but errors.
_CONFIGURATION = """
[global]
include={{libdir}}/internal.conf
rundir={folder}
ipc_prefix=bench-
port_offset=0
stats_connection_ttl=120
[runner]
services=condure,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={folder}
log_level=0
client_buffer_size=8192
client_maxconn=19900
[proxy]
routesfile={folder}/routes
debug=false
auto_cross_origin=false
zurl_out_specs=ipc://{folder}/zurl-in
zurl_out_stream_specs=ipc://{folder}/zurl-in-stream
zurl_in_specs=ipc://{folder}/zurl-out
[handler]
push_in_spec=tcp://127.0.0.1:{zmq}
push_in_http_addr=127.0.0.1
push_in_http_port={control}
push_in_http_max_headers_size=10000
push_in_http_max_body_size=4000000
stats_spec=ipc://{folder}/bench-stats
command_spec=ipc://{folder}/bench-command
message_rate=0
message_hwm=10000000
connection_subscription_max=20
stats_report_interval=10
stats_format=tnetstring
"""

# Its HTTP client may ask an origin on loopback, and as often at once as there are streams.
_ZURL = """
[General]
instance_id=bench
in_spec=ipc://{folder}/zurl-in
in_stream_spec=ipc://{folder}/zurl-in-stream
out_spec=ipc://{folder}/zurl-out
in_req_spec=ipc://{folder}/zurl-req
defpolicy=allow
max_open_requests=20000
buffer_size=200000
timeout=600
in_hwm=100000
out_hwm=100000
"""


class Pushpin(Server):
    """Pushpin with its proxy, handler, connection manager, HTTP client and origin."""

    name = "pushpin"
    batch = 100
    ahead = 50  # with 200, it answers some with a 502

    def __init__(self, setup: Setup, port: int, control: int, processes: Sequence[Process]) -> None:
        self._control = control
        super().__init__(setup, port, processes)
        self.version = version()
        self._number = 0

    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return the path: what was missed would be the origin's matter."""
        return f"/events/{channel}"

    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Post the events as items to the control port."""
        items = []
        for payload in payloads:
            self._number += 1
            content = f"data: {payload.decode()}\nid: {self._number}\n\n"
            items.append({"channel": channel, "formats": {"http-stream": {"content": content}}})
        self._posting.post("/publish/", json.dumps({"items": items}).encode())

    def _posting_port(self) -> int:
        return self._control


def version() -> str:
    """Return its version. Raises MissingError."""
    if shutil.which("pushpin") is None:
        raise MissingError("not installed: apt-get install pushpin")
    asked = subprocess.run(["pushpin", "--version"], capture_output=True, text=True, check=False)
    return asked.stdout.strip().removeprefix("pushpin ")


@contextlib.contextmanager
def start(setup: Setup) -> Iterator[Server]:
    """Run pushpin and its origin. Raises MissingError."""
    program, asking = shutil.which("pushpin"), shutil.which("zurl")
    if program is None or asking is None:
        raise MissingError("not installed: apt-get install pushpin")
    if setup.tls or setup.workers > 1:
        raise MissingError("not measured with TLS or several workers")
    port, control, origin, zmq = free_port(), free_port(), free_port(), free_port()
    heartbeat = f"{max(1, round(setup.heartbeat))}"
    origin_command = [sys.executable, "-m", "bench.servers.programs.pushpin_origin", str(origin), heartbeat]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pushpin.conf"
        file.write_text(_CONFIGURATION.format(folder=folder, port=port, control=control, zmq=zmq))
        (Path(folder) / "routes").write_text(f"* 127.0.0.1:{origin}\n")
        (Path(folder) / "zurl.conf").write_text(_ZURL.format(folder=folder))
        with (
            running(*origin_command) as behind,
            running(asking, f"--config={folder}/zurl.conf", "--loglevel=0") as client,
            running(program, f"--config={file}") as process,
        ):
            for each in (origin, port, control):
                wait_for_port(each, alive=process.is_running)
            server = Pushpin(setup, port, control, [process, behind, client])
            try:
                yield server
            finally:
                server.close()
