"""Datagrams between the processes on one file: each has a socket, whose name stands in the file itself.

The sockets are abstract (Linux), so a process that dies leaves none. Its name is a row of the board that it
no longer renews, and so expires. Nudges only save time: without a socket, or with a name that is lost,
followers look into the file every `sqlite.POLL_SECONDS`.
"""

import asyncio
import secrets
import socket
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.broker.sqlite.shared_store import boot_id, seconds_since_boot

SOCKETS_QUOTA_NAME = "sqlite-nodes"
"""Under which the board has the sockets' names."""

REGISTRATION_SECONDS = 60.0
"""How long the name of a dead process is nudged."""

RENEW_SECONDS = 20.0
"""How often a living one renews its own."""


class ProcessWakeups:
    """Wakes the other processes, and is woken by them. Raises OSError where there can be no such socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_wakeup: Callable[[], None]) -> None:
        self._own_name = secrets.token_hex(8)
        self._boot_id = boot_id()
        self._loop = loop
        self._on_wakeup = on_wakeup
        self._registered_at = float("-inf")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            self._socket.bind(_socket_address(self._own_name))
            loop.add_reader(self._socket.fileno(), self._drain_socket)
        except BaseException:
            self._socket.close()
            raise

    # In the writer thread, inside a transaction.

    def register(self, db: sqlite3.Connection, *, is_new_file: bool = False) -> None:
        """Write the own name into the file where it is time to; ``is_new``: the file may be another one."""
        now = seconds_since_boot()
        if is_new_file or now - self._registered_at >= RENEW_SECONDS:
            db.execute(
                "DELETE FROM seats WHERE name = ? AND (until <= ? OR boot <> ?)",
                (SOCKETS_QUOTA_NAME, now, self._boot_id),
            )
            row = (SOCKETS_QUOTA_NAME, self._own_name, self._boot_id, now + REGISTRATION_SECONDS)
            db.execute("REPLACE INTO seats VALUES (?, ?, ?, ?)", row)
            self._registered_at = now

    def other_processes(self, db: sqlite3.Connection) -> list[str]:
        """Return the names of the other processes."""
        found = db.execute(
            "SELECT member FROM seats WHERE name = ? AND member <> ?", (SOCKETS_QUOTA_NAME, self._own_name)
        )
        return [name for (name,) in found]

    def unregister(self, db: sqlite3.Connection) -> None:
        """Remove the own name."""
        db.execute("DELETE FROM seats WHERE name = ? AND member = ?", (SOCKETS_QUOTA_NAME, self._own_name))

    # Anywhere.

    def wake(self, names: Sequence[str]) -> None:
        """Wake other processes."""
        for name in names:
            with suppress(OSError):  # it is gone; or its queue is full, so it is awake
                self._socket.sendto(b"\n", _socket_address(name))

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _drain_socket(self) -> None:
        with suppress(BlockingIOError):
            while self._socket.recv(64):
                pass
        self._on_wakeup()


def _socket_address(name: str) -> str:
    return f"\0sse-gateway-{name}"
