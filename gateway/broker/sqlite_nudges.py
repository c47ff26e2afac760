"""Datagrams between the processes on one file: names in a folder beside it, sockets without files.

The sockets are abstract (Linux), so a process that dies leaves none; its name is removed by the first
one that finds nobody behind it.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.broker.sqlite_files import make_folder


class Nudges:
    """Wakes the other processes, and is woken by them. All but `send` runs on the event loop."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, on_nudge: Callable[[], None]) -> None:
        self._folder = Path(f"{path}-nodes")
        make_folder(self._folder, path)
        self._name = secrets.token_hex(8)
        self._loop = loop
        self._on_nudge = on_nudge
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(self._address(self._name))
        (self._folder / self._name).touch()
        loop.add_reader(self._socket.fileno(), self._read)

    def send(self) -> None:
        """Wake the other processes; called from the writer thread."""
        for entry in self._folder.iterdir():
            if entry.name == self._name:
                continue
            try:
                self._socket.sendto(b"\n", self._address(entry.name))
            except ConnectionRefusedError:
                entry.unlink(missing_ok=True)
            except OSError:
                pass  # its queue is full: it is awake

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            (self._folder / self._name).unlink(missing_ok=True)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while self._socket.recv(64):
                pass
        self._on_nudge()

    @staticmethod
    def _address(name: str) -> str:
        return f"\0sse-gateway-{name}"
