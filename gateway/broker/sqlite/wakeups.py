"""Datagrams between the processes on one file, so that an event need not wait for the next poll.

Each process has an abstract Unix socket (Linux), whose name it registers in the file as a quota slot that it
renews. A process that dies leaves no socket, and its registration expires. Without a socket or a
registration, followers read the file every `gateway.broker.sqlite.follower.POLL_SECONDS`.
"""

import asyncio
import secrets
import socket
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.broker.sqlite.shared_store import boot_id, seconds_since_boot

SOCKETS_QUOTA_NAME = "sqlite-nodes"
"""The quota under which the sockets' names are registered."""

REGISTRATION_SECONDS = 60.0
"""How long the socket of a dead process stays registered."""

RENEW_SECONDS = 20.0
"""How often a live process renews its registration."""


class ProcessWakeups:
    """Wakes the other processes, and calls ``on_wakeup`` when one of them wakes this one.

    Raises OSError where such a socket cannot be created.
    """

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

    # In the writer's thread, inside a transaction.

    def register(self, db: sqlite3.Connection, *, is_new_file: bool = False) -> None:
        """Register the socket's name where it is due; ``is_new_file``: the file may be another one."""
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
        """Return the names of the other processes' sockets."""
        found = db.execute(
            "SELECT member FROM seats WHERE name = ? AND member <> ?", (SOCKETS_QUOTA_NAME, self._own_name)
        )
        return [name for (name,) in found]

    def unregister(self, db: sqlite3.Connection) -> None:
        """Remove the registration."""
        db.execute("DELETE FROM seats WHERE name = ? AND member = ?", (SOCKETS_QUOTA_NAME, self._own_name))

    # In any thread.

    def wake(self, names: Sequence[str]) -> None:
        """Wake other processes."""
        for name in names:
            with suppress(OSError):  # the process is gone; or its queue is full, so it is awake
                self._socket.sendto(b"\n", _socket_address(name))

    def close(self) -> None:
        """Stop receiving; harmless when repeated."""
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
