"""A client whose host is gone, in a network of its own: the kernel's clock decides, so this is real time."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.gateway import eventually, gateway_running
from tests.support.needs import need, need_root


@contextmanager
def another_host() -> Iterator[tuple[str, str, Callable[[], None]]]:
    """A network namespace as a second host: its name, our address as it sees it, and a way to cut the cable."""
    need_root()
    ip, name = need("ip", "iproute2"), f"gw{os.getpid()}"
    block = os.getpid() % 2**14 * 4  # a network of its own, so that two runs do not meet
    network = f"10.213.{block >> 8}"
    ours, theirs = f"{network}.{(block & 255) + 1}", f"{network}.{(block & 255) + 2}"

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, capture_output=True)

    run("netns", "add", name)
    try:
        run("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b", "netns", name)
        run("addr", "add", f"{ours}/30", "dev", f"{name}a")
        run("link", "set", f"{name}a", "up")
        run("-n", name, "addr", "add", f"{theirs}/30", "dev", f"{name}b")
        run("-n", name, "link", "set", f"{name}b", "up")
        yield name, ours, lambda: run("-n", name, "link", "set", f"{name}b", "down")
    finally:
        run("netns", "del", name)
        subprocess.run([ip, "link", "del", f"{name}a"], check=False, capture_output=True)


@pytest.mark.extended
async def test_a_client_that_vanishes_without_a_fin_is_noticed_in_time() -> None:
    """The cable is cut: no FIN, no reset. The heartbeat goes unacknowledged, and the write timeout ends it."""
    over = {"server": {"listen": "0.0.0.0:0"}, "timeouts": {"heartbeat": "500ms", "write": "1s"}}
    with another_host() as (name, address, cut):
        async with gateway_running(over) as gateway:
            request = "GET /events/orders HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"
            script = (
                f"import socket; s = socket.create_connection(('{address}', {gateway.port}));"
                f"s.sendall(b'{request}');\nwhile True: s.recv(4096)"
            )
            client = subprocess.Popen(
                [need("ip", "iproute2"), "netns", "exec", name, sys.executable, "-c", script]
            )
            try:
                await eventually(lambda: gateway.daemon.streams.active)
                cut()
                await eventually(lambda: not gateway.daemon.streams.active)
            finally:
                client.kill()
                client.wait()
            assert await gateway.metric("active_connections") == 0
            assert await gateway.metric('disconnects_total{reason="client_lost"}') == 1
