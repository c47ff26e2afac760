"""HAProxy from Debian in front of several gateways, which it asks for /readyz."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.process import free_port, running, wait_for_port
from tests.support.needs import need
from tests.support.node import Node

_CONFIGURATION = """
global
  maxconn 8000
defaults
  mode http
  timeout connect 30s
  timeout check 30s
  timeout client 180s
  timeout server 180s
  timeout http-request 30s
  option http-no-delay
  option redispatch
  retries 3
  option httpchk
  http-check send meth GET uri /readyz
  default-server inter 200ms fall 1 rise 1
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  monitor-uri /all-up
  monitor fail if {{ nbsrv(streams) lt {count} }}
  acl is_post path_beg /hooks/
  use_backend posts if is_post
  default_backend streams
backend streams
  balance leastconn
{streams}
backend posts
  balance roundrobin
{posts}
"""


@dataclass(frozen=True)
class Balancer:
    """A running HAProxy."""

    port: int

    async def sees_all(self) -> bool:
        """Tell whether all nodes are in use."""
        url = f"http://127.0.0.1:{self.port}/all-up"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status == 200


@contextmanager
def haproxy_running(nodes: Sequence[Node]) -> Iterator[Balancer]:
    """Run HAProxy in front of gateways."""
    program, port = need("haproxy", "haproxy"), free_port()
    streams = [f"  server n{node.port} 127.0.0.1:{node.port} check port {node.admin}" for node in nodes]
    posts = [f"  server n{node.port} 127.0.0.1:{node.port} track streams/n{node.port}" for node in nodes]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "haproxy.cfg"
        text = _CONFIGURATION.format(
            port=port, count=len(nodes), streams="\n".join(streams), posts="\n".join(posts)
        )
        file.write_text(text)
        with running(program, "-db", "-f", str(file)) as process:
            wait_for_port(port, alive=process.is_running)
            yield Balancer(port)
