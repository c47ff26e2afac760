"""nginx with the nchan module, the fastest peer: C, and Debian has it (nginx-light, libnginx-mod-nchan)."""

import contextlib
import getpass
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.kept_alive import KeptAlive
from bench.process import free_port, running, wait_for_port
from bench.servers.base import MissingError, Server, Setup, with_last_id
from bench.servers.certificate import certificate

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

CONNECTIONS = 22_000
"""Of one worker. It has 20,000 descriptors, but nginx closes connections once under a sixteenth are free."""

_POSTING = 8
"""Connections that it is posted to by, all at once."""

# multi_accept, reuseport and the long backlog are what nginx offers for storms; its logs are off, a
# publisher's connection is never closed for its many requests, and bodies of large events stay in memory.
# History and signs of life are those of the gateway.
_CONFIGURATION = """
load_module {module};
daemon off;
user {user};
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections {connections}; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  keepalive_requests 10000000;
  keepalive_timeout 1h;
  client_max_body_size 2m;
  client_body_buffer_size 256k;
  nchan_shared_memory_size 1024m;
  nchan_message_buffer_length {history};
  nchan_message_timeout 5m;
  server {{
    listen 127.0.0.1:{port}{ssl} backlog=4096 reuseport;
    {certificate}
    location ~ ^/events/([a-z0-9.-]+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
      nchan_eventsource_ping_interval {heartbeat};
    }}
    location ~ ^/publish/([a-z0-9.-]+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
    }}
  }}
}}
"""


class Nchan(Server):
    """nginx, one request an event."""

    name = "nchan"

    def __init__(self, setup: Setup, port: int, processes: Sequence[object]) -> None:
        super().__init__(setup, port, processes)  # type: ignore[arg-type]
        self.version = version()
        self._posting_too = [KeptAlive(port, tls=setup.tls) for _ in range(_POSTING)]

    def target(self, channel: str, last_event_id: str | None = None) -> str:
        """Return the path."""
        return with_last_id(f"/events/{channel}", last_event_id)

    def publish(self, channel: str, payloads: Sequence[bytes]) -> None:
        """Post the events over several connections at once; one alone over the first."""
        for first in range(0, len(payloads), _POSTING):
            group = payloads[first : first + _POSTING]
            for connection, payload in zip(self._posting_too, group, strict=False):
                connection.send(f"/publish/{channel}", payload)
            for connection in self._posting_too[: len(group)]:
                connection.answer()

    def close(self) -> None:
        """Close what it publishes by."""
        for connection in self._posting_too:
            connection.close()


def _nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None or not MODULE.exists():
        raise MissingError("not installed: apt-get install nginx-light libnginx-mod-nchan")
    return found


def version() -> str:
    """Return the versions of nchan and nginx. Raises MissingError."""
    words = subprocess.run([_nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    nginx = re.search(r"nginx/(\S+)", words)
    asked = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Version}", "libnginx-mod-nchan"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{asked.stdout or 'unknown'} on nginx {nginx[1] if nginx else 'unknown'}"


@contextlib.contextmanager
def start(setup: Setup) -> Iterator[Server]:
    """Run nginx. Raises MissingError."""
    program, port = _nginx(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        tls = ""
        if setup.tls:
            chain, key = certificate(folder)
            tls = f"ssl_certificate {chain}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;"
        file = Path(folder) / "nginx.conf"
        file.write_text(
            _CONFIGURATION.format(
                module=MODULE,
                user=getpass.getuser(),
                workers=setup.workers,
                folder=folder,
                connections=CONNECTIONS,
                history=setup.history,
                port=port,
                ssl=" ssl" if setup.tls else "",
                certificate=tls,
                heartbeat=max(1, round(setup.heartbeat)),
            )
        )
        with running(program, "-c", str(file), "-p", folder, "-e", f"{folder}/error.log") as process:
            wait_for_port(port, alive=process.is_running)
            server = Nchan(setup, port, [process])
            try:
                yield server
            finally:
                server.close()
