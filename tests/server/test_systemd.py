"""sd_notify(3), against real datagram sockets."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.server.systemd import SystemdNotifier
from tests.support.gateway import eventually

pytestmark = pytest.mark.idle_clock


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and what ``NOTIFY_SOCKET`` says of it."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@sse-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name[1:] if name.startswith("@") else name)
        listening.setblocking(False)
        yield listening, name


def received(listening: socket.socket) -> list[str]:
    """Return what was sent by now, line by line."""
    lines: list[str] = []
    while True:
        try:
            lines += listening.recv(4096).decode().split("\n")
        except BlockingIOError:
            return lines


def test_the_manager_hears_of_each_state(manager: tuple[socket.socket, str]) -> None:
    """A unit of Type=notify-reload waits for exactly these words."""
    listening, name = manager
    systemd = SystemdNotifier({"NOTIFY_SOCKET": name})
    systemd.notify_ready("serving")
    assert received(listening) == ["READY=1", "STATUS=serving"]
    systemd.notify_reloading()
    reloading, since = received(listening)
    assert reloading == "RELOADING=1"
    assert since.removeprefix("MONOTONIC_USEC=").isdigit()
    systemd.notify_stopping("draining", 37.5)
    assert received(listening) == ["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=37500000"]


async def test_signs_of_life_stop_when_it_is_not_well(manager: tuple[socket.socket, str]) -> None:
    """A watchdog that is fed by habit never bites."""
    listening, name = manager
    systemd, well = SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"}), [True]
    systemd.start_watchdog(lambda: well[0])
    try:
        await eventually(lambda: "WATCHDOG=1" in received(listening))
        well[0] = False
        await asyncio.sleep(0.2)
        received(listening)
        await asyncio.sleep(0.2)
        assert received(listening) == []
    finally:
        systemd.close()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "100000"},
        {"NOTIFY_SOCKET": "/nowhere/notify"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "soon"},
    ],
)
async def test_without_a_manager_nothing_happens(environ: dict[str, str]) -> None:
    """Most gateways run in containers."""
    systemd = SystemdNotifier(environ)
    systemd.notify_ready("serving")
    systemd.start_watchdog(lambda: True)
    await asyncio.sleep(0.1)
    systemd.notify_stopping("draining", 1)
    systemd.close()


async def test_a_watchdog_of_another_process_is_not_fed(manager: tuple[socket.socket, str]) -> None:
    """A child that inherits the environment must not vouch for its parent."""
    listening, name = manager
    systemd = SystemdNotifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"})
    systemd.start_watchdog(lambda: True)
    await asyncio.sleep(0.2)
    assert received(listening) == []
    systemd.close()


def test_a_manager_that_does_not_listen_is_not_waited_for(manager: tuple[socket.socket, str]) -> None:
    """A full socket would stop the loop, and every stream with it."""
    _, name = manager
    systemd = SystemdNotifier({"NOTIFY_SOCKET": name})
    for _ in range(10_000):
        systemd.notify_ready("x" * 100)
