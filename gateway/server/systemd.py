"""Notifications to the service manager: sd_notify(3), over one datagram socket.

Nothing here blocks or raises; without a service manager nothing is sent.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor


class SystemdNotifier:
    """The service manager of this process; ``environ`` holds its address, if there is one."""

    def __init__(self, environ: Mapping[str, str], background: TaskSupervisor = UNCOUNTED_SUPERVISOR) -> None:
        self._background = background
        path = environ.get("NOTIFY_SOCKET", "")
        # An abstract socket is written with an @, and its name begins with a zero byte, see unix(7).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        is_ours = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
        text = environ.get("WATCHDOG_USEC", "")
        self._watchdog_seconds = int(text) / 1e6 if self._address and is_ours and text.isdigit() else 0.0
        self._watchdog_task: asyncio.Task[None] | None = None

    def notify_ready(self, status: str) -> None:
        """Report that this process serves, after the start and each reload. ``status`` is for people."""
        self._send("READY=1", f"STATUS={status}")

    def notify_reloading(self) -> None:
        """Report that a reload has begun; `notify_ready` ends it, whether it succeeded or not."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def notify_stopping(self, status: str, seconds: float) -> None:
        """Report that the shutdown has begun, and may take ``seconds``, whatever ``TimeoutStopSec=`` says."""
        self._send("STOPPING=1", f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def start_watchdog(self, is_healthy: Callable[[], bool]) -> None:
        """Notify the watchdog twice per ``WatchdogSec=``, while healthy. Needs a running loop."""
        if self._watchdog_seconds and self._watchdog_task is None:
            self._watchdog_task = self._background.start_task(
                "watchdog", partial(self._send_heartbeats, is_healthy)
            )

    def close(self) -> None:
        """Stop notifying the watchdog; harmless when repeated."""
        if self._watchdog_task is not None:
            self._watchdog_task.cancel()
            self._watchdog_task = None

    async def _send_heartbeats(self, is_healthy: Callable[[], bool]) -> None:
        while True:
            if is_healthy():
                self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sending:
            sending.sendto("\n".join(assignments).encode(), self._address)
