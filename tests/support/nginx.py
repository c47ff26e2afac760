"""nginx from Debian in front of a server of the test's, with the lines that a test is about."""

import getpass
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.process import free_port, running, wait_for_port
from tests.support.needs import need

_CONFIGURATION = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  server {{
    listen 127.0.0.1:{port} {listen};
    {server}
    location / {{
      proxy_pass http://127.0.0.1:{upstream};
      {location}
    }}
  }}
}}
"""


@contextmanager
def nginx_running(upstream: int, location: str = "", *, server: str = "", listen: str = "") -> Iterator[int]:
    """Run nginx in front of a port, and give its own. ``listen`` is what follows the address."""
    program, port = need("nginx", "nginx-light"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nginx.conf"
        file.write_text(
            _CONFIGURATION.format(
                user=getpass.getuser(), folder=folder, port=port, listen=listen,
                server=server, upstream=upstream, location=location,
            )
        )  # fmt: skip
        with running(program, "-c", str(file), "-p", folder, "-e", f"{folder}/error.log") as process:
            wait_for_port(port, alive=process.is_running)
            yield port
