"""The admin port of a node, of a worker, and of the parent of several workers."""

from collections.abc import Callable

from gateway.admin.app import ADMIN_HEADERS, AdminApp, AdminBackend, RouteGroup
from gateway.admin.console_page import ConsolePage
from gateway.admin.guard import AdminGuard
from gateway.admin.status_stream import StatusStream
from gateway.config.model.config import Config
from gateway.config.model.value_types import UnixSocketPath
from gateway.http.listener import Listener
from gateway.observability.recent_errors import RecentErrors
from gateway.observability.task_supervisor import TaskSupervisor


class AdminPort:
    """The listener with its guard, the console and the status stream.

    With ``worker_socket`` it is that of a worker, which serves its parent only: it needs neither of them.
    """

    def __init__(
        self,
        config: Config,
        backend: AdminBackend,
        recent_errors: RecentErrors,
        background: TaskSupervisor,
        *,
        is_draining: Callable[[], bool],
        try_panel: RouteGroup,
        on_traffic: Callable[[], None] | None = None,
        worker_socket: str | None = None,
    ) -> None:
        """``try_panel`` is served in development mode; ``on_traffic`` is called for each request."""
        self.guard: AdminGuard | None = None
        self.status_stream = StatusStream(
            backend.status_report, write_seconds=config.timeouts.write, background=background
        )
        groups: list[RouteGroup] = [try_panel] if config.server.development else []
        if worker_socket is None:
            self.guard = AdminGuard.from_config(config.server, recent_errors)
            groups += [ConsolePage(), self.status_stream]
        self.listener = Listener(
            AdminApp(backend, self.guard, groups).build(),
            [config.server.admin if worker_socket is None else UnixSocketPath(worker_socket)],
            config_key="server.admin",
            request_seconds=config.timeouts.request,
            headers=ADMIN_HEADERS,
            on_traffic=on_traffic,
            is_draining=is_draining,
            background=background,
        )

    def apply(self, config: Config) -> None:
        """Apply the token, host names and deadlines of a configuration; the address stays."""
        self.listener.apply(config)
        if self.guard is not None:
            self.guard.apply(config)

    async def stop(self) -> None:
        """End the status streams, and close the port; harmless when repeated."""
        self.status_stream.close()
        await self.listener.stop()
