"""What the ports listen on: several addresses, IPv4 and IPv6 together, Unix sockets."""

import asyncio
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.model.value_types import ListenAddresses, TcpAddress, UnixSocketPath
from gateway.core.errors import StartupError
from gateway.http.sockets import UnixSocket, bind_all
from tests.support.authority import Authority
from tests.support.deadline import safety_net
from tests.support.gateway import eventually, gateway_running

PATH = "/events/orders"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def status_on(path: Path, target: str = PATH, **headers: str) -> int:
    """Return the status of a request over a Unix socket; its stream is closed at once."""
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://localhost{target}", headers=headers) as answer,
    ):
        return answer.status


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("listen", ["*:0", "[::]:0"])
async def test_every_address_is_of_both_families(listen: str) -> None:
    """On a machine with IPv6, clients of IPv4 must not be refused."""
    async with gateway_running({"server": {"listen": listen}}) as gateway:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, gateway.port)):
                pass


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_one_port_may_be_listed_for_both_families() -> None:
    """0.0.0.0 and [::] together, as other servers need them, must not conflict."""
    (first,), (second,) = bind_all([TcpAddress("0.0.0.0", 0), TcpAddress("::", 0)], "server.listen")
    port = first.getsockname()[1]
    first.close()
    second.close()
    places = [TcpAddress("0.0.0.0", port), TcpAddress("::", port)]
    for each in [one for some in bind_all(places, "server.listen") for one in some]:
        assert each.getsockname()[1] == port
        each.close()


async def test_all_of_a_list_are_served(tmp_path: Path) -> None:
    """Each address leads to the same channels, limits and drain."""
    path = tmp_path / "public.sock"
    listen = ["127.0.0.1:0", f"unix:{path}", "127.0.0.2:0"]
    async with gateway_running({"server": {"listen": listen}}) as gateway:
        ports = gateway.daemon.public_listener.ports
        assert ports[1] == 0
        streams = [
            await asyncio.open_connection(host, port)
            for host, port in (("127.0.0.1", ports[0]), ("127.0.0.2", ports[2]))
        ]
        for reader, writer in streams:
            writer.write(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert b" 200 " in await reader.readline()
        assert await status_on(path) == 200
        assert await status_on(path, **{"Content-Length": "0"}) == 200
        await eventually(lambda: len(gateway.daemon.streams.active) == 2)
        gateway.daemon.public_listener.stop_accepting()
        for host, port in (("127.0.0.1", ports[0]), ("127.0.0.2", ports[2])):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(host, port)
        await eventually(lambda: not path.exists())
        for _, writer in streams:
            writer.close()


async def test_all_addresses_are_bound_or_none(tmp_path: Path) -> None:
    """A start that fails must not leave half of the addresses behind, and names the one at fault."""
    path = tmp_path / "public.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartupError, match=rf"cannot listen on {where} \(server.listen\)"):
            async with gateway_running({"server": {"listen": [f"unix:{path}", where]}}):
                pass
    assert not path.exists()


async def test_a_unix_socket_is_for_proxies_of_this_machine(tmp_path: Path) -> None:
    """nginx runs as another user, and says who its client is."""
    path = tmp_path / "public.sock"
    over = {"server": {"listen": f"unix:{path}"}, "limits": {"connections_per_address": 1}}
    async with gateway_running(over) as gateway:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession(connector=connector) as session:
            texts = []
            for client in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
                answer = await session.get(f"http://x{PATH}", headers={"X-Forwarded-For": client})
                texts.append(await answer.content.readuntil(b"\n\n"))
        assert [b"address_limit" in text for text in texts] == [False, True, False]
        assert gateway.port == 0


async def test_the_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    """A kill leaves the file behind: the next start must not fail on it."""
    path = tmp_path / "public.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with gateway_running({"server": {"listen": f"unix:{path}"}}):
        assert await status_on(path) == 200
    assert not path.exists()


async def test_a_living_process_keeps_its_socket(tmp_path: Path) -> None:
    """A second gateway started by mistake must not take clients from the first, bound or listening."""
    path = tmp_path / "public.sock"
    first = UnixSocket(str(path))
    for _ in range(2):
        with pytest.raises(StartupError, match="in use by another process"):
            async with gateway_running({"server": {"listen": f"unix:{path}"}}):
                pass
        first.listen()
    first.close()
    path.write_text("mine")
    with pytest.raises(StartupError, match="a file that is no socket is there"):
        async with gateway_running({"server": {"listen": f"unix:{path}"}}):
            pass
    assert path.read_text() == "mine"


async def test_the_admin_port_may_be_a_unix_socket(tmp_path: Path) -> None:
    """Metrics and status for an agent of this machine, without a port."""
    path = tmp_path / "admin.sock"
    async with gateway_running({"server": {"admin": f"unix:{path}"}}):
        assert await status_on(path, "/status") == 200
        assert await status_on(path, "/readyz", Host="evil.example.com") == 403


async def test_tls_is_on_every_address_but_unix_sockets(tmp_path: Path) -> None:
    """A proxy of this machine needs no certificate; all others do."""
    path = tmp_path / "public.sock"
    pair = Authority(tmp_path).server()
    server = {
        "listen": ["127.0.0.1:0", "127.0.0.2:0", f"unix:{path}"],
        "tls": {"certificate": str(pair.certificate), "key": str(pair.key)},
    }
    async with gateway_running({"server": server}) as gateway:
        ports = gateway.daemon.public_listener.ports
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            for host, port in (("127.0.0.1", ports[0]), ("127.0.0.2", ports[1])):
                async with session.get(f"https://{host}:{port}{PATH}") as answer:
                    assert answer.status == 200
        assert await status_on(path) == 200


def config(tmp_path: Path, workers: int) -> Path:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"""
server: {{listen: ["127.0.0.1:0", "unix:{tmp_path}/p.sock"], admin: "unix:{tmp_path}/a.sock", workers: {workers}}}
broker: {{url: "sqlite:///{tmp_path}/log.db"}}
timeouts: {{pre_drain: 0s}}
sources: {{hooks: {{type: webhook, verify: {{none: true}}}}}}
channels: {{orders: {{from: [{{source: hooks, topic: orders}}], access: public}}}}
"""
    )
    return file


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "run", "--hints", "--config", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            async with safety_net():
                await process.communicate()


@pytest.mark.parametrize("workers", [1, 2])
async def test_processes_serve_a_list_too(tmp_path: Path, workers: int) -> None:
    """Workers share the Unix socket, which their parent bound, as they share ports."""
    public = tmp_path / "p.sock"
    async with running(config(tmp_path, workers)) as process:
        assert process.stdout is not None
        text = b""
        async with safety_net():
            while b"status" not in text:
                text += await process.stdout.readline()
        assert f"unix:{tmp_path}/a.sock:/metrics".encode() in text
        for _ in range(8):
            assert await status_on(public) == 200
        assert await status_on(tmp_path / "a.sock", "/readyz") == 200
        process.send_signal(signal.SIGTERM)
        async with safety_net():
            await process.communicate()
        assert process.returncode == 0
    assert not public.exists()
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ([], "names no address"),
        (["127.0.0.1:1", "127.0.0.1:1"], "is listed twice"),
        (["*:8080", "127.0.0.1:8080"], "every address of this machine"),
        ("unix:relative.sock", "absolute path"),
        ("unix:/" + "x" * 107, "107 bytes"),
        (["127.0.0.1"], "is not an address"),
    ],
)
async def test_what_cannot_be_listened_on(listen: Any, message: str) -> None:
    """The file says so, before anything starts."""
    with pytest.raises(Exception, match=message):
        async with gateway_running({"server": {"listen": listen}}):
            pass


def test_places_are_shown_as_they_are_written() -> None:
    """Logs, check and diff name what stands in the file."""
    places = ListenAddresses([TcpAddress("::", 1), UnixSocketPath("/a"), TcpAddress("*", 2)])
    assert str(places) == "[::]:1, unix:/a, *:2"
    assert (places.port, places.is_loopback) == (1, False)
    assert ListenAddresses([UnixSocketPath("/a"), TcpAddress("127.0.0.1", 2)]).is_loopback
