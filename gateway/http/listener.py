"""Listens for connections, and closes those that send no complete request in time."""

import asyncio
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

from aiohttp import web

from gateway.http.aiohttp_protocol import SUPPORTED_HTTP_VERSIONS, AiohttpProtocol, OnRefused
from gateway.http.fast_path import LINGER_SECONDS, FastPathProtocol, HeadParser
from gateway.http.responses import EarlyResponse, Handler, close_connection_after
from gateway.http.routes.subscribe import SubscribeHandler
from gateway.http.sockets import BindableAddress, UnixSocket, bind_all, listen_error, set_user_timeout
from gateway.http.tls.acceptor import TlsAcceptor
from gateway.http.tls.certificates import CertificateWatcher
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, Caller, ClientLimits
from gateway.streams.upgrade import can_detach_handler

BACKLOG = 4096
"""Connections that may wait to be accepted. With 128, thousands at once wait 15 s and hundreds fail."""

KEEPALIVE_SECONDS = 75.0
"""Seconds that a connection may idle between two requests."""

SETTLE_SECONDS = 1.0
"""Seconds that a connection which was accepted just before the port closed has for its request."""

_SETTLE_TICK_SECONDS = 0.02
_SWEEP_SECONDS = 1.0
_ACCEPT_BATCH = 64

ProtocolT = TypeVar("ProtocolT")


class _AbortProtocol(asyncio.Protocol):
    """Aborts a connection: without a descriptor left, accepting itself would fail, again and again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]  # a stream's transport has it


class Listener:
    """Serves one application on addresses and Unix sockets: all of them accept, or none.

    All but the Unix sockets use TLS, if there is a ``certificate_watcher``.

    A connection that sends no complete request within ``request_seconds`` of being accepted is closed.
    After that, aiohttp's keep-alive deadline and those of the handlers apply. ``headers`` are those of
    responses that no handler of the application makes. ``on_traffic`` is called for each connection and
    request. While ``is_draining`` returns True, each response is the last one of its connection, so that
    proxies empty their pools before the connections are closed.
    """

    def __init__(
        self,
        app: web.Application,
        addresses: Sequence[BindableAddress],
        *,
        config_key: str,
        request_seconds: float,
        write_seconds: float | None = None,
        certificate_watcher: CertificateWatcher | None = None,
        is_shared: bool = False,
        available_connections: Callable[[], int] = lambda: _ACCEPT_BATCH,
        subscribe_handler: SubscribeHandler | None = None,
        limits: ClientLimits | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        on_traffic: Callable[[], None] | None = None,
        on_refused: OnRefused | None = None,
        is_draining: Callable[[], bool] = lambda: False,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._background = background
        self._guarded_sweep = background.guard_callback("connection_sweep", self._sweep)
        # Requests in progress have the same deadline at a shutdown.
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=request_seconds)
        self._options: dict[str, Any] = {
            "headers": headers,
            "access_log": None,
            "keepalive_timeout": KEEPALIVE_SECONDS,
            # aiohttp would decompress and read the rest of a body even after it was refused.
            "auto_decompress": False,
            "lingering_time": LINGER_SECONDS,
            "on_lost": self._release_connection,
            "on_data": on_traffic,
            "on_refused": on_refused,
        }
        self._on_traffic = on_traffic
        self._addresses = addresses
        self._config_key = config_key
        self._request_seconds = request_seconds
        self._write_seconds = write_seconds
        self._certificate_watcher = certificate_watcher
        self._is_shared = is_shared
        self._available_connections = available_connections
        self._accept_credit = 0
        self._subscribe_handler = subscribe_handler
        self._limits = limits
        self._fast_path_deadlines: dict[FastPathProtocol, float] = {}
        self._aiohttp_deadlines: dict[web.RequestHandler, float] = {}
        self._sockets_by_address: list[list[socket.socket]] = []
        self._servers: list[tuple[socket.socket, asyncio.Server]] = []
        """The sockets that the event loop accepts from; the others are the TLS acceptor's."""
        self.ports: list[int] = []
        """The port of each address, the real one if the configuration says 0; 0 for a Unix socket."""
        self._tls_acceptor: TlsAcceptor | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        # Connections that `stop_accepting` took out of the kernel's queue.
        self._queued_accepts: set[asyncio.Task[object]] = set()
        self._is_draining = is_draining
        app.middlewares.insert(0, self._on_aiohttp_request)
        app.on_response_prepare.append(self._announce_close)

    async def bind(self) -> None:
        """Bind the addresses; connections are still refused. Harmless when repeated.

        Raises StartupError, which names the key of the configuration.
        """
        if self._sockets_by_address:
            return
        self._sockets_by_address = bind_all(
            self._addresses, self._config_key, is_shared=self._is_shared, write_seconds=self._write_seconds
        )
        self.ports = [
            0 if sockets[0].family == socket.AF_UNIX else sockets[0].getsockname()[1]
            for sockets in self._sockets_by_address
        ]
        await self._runner.setup()
        assert self._runner.server is not None
        self._options["can_retire"] = await can_detach_handler(self._runner.server)

    async def start(self) -> None:
        """Accept connections, after `bind` if that was not called yet.

        All addresses listen before this first yields to the loop, so no signal comes in between. Raises
        StartupError like `bind`.
        """
        await self.bind()
        for address, sockets in zip(self._addresses, self._sockets_by_address, strict=True):
            for bound in sockets:
                try:
                    bound.listen(BACKLOG)  # here, because uvloop ignores errors of it
                except OSError as error:  # two sockets may be bound to one address until one of them listens
                    raise listen_error(address, self._config_key, error) from None
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self.head_parser = HeadParser()
        if self._subscribe_handler is not None and not self.head_parser.is_compatible():
            self._subscribe_handler = None
        # Started below: nobody could close the listening socket of a server that is cancelled while it
        # starts.
        tls_sockets = []
        for bound in self._sockets:
            is_unix = bound.family == socket.AF_UNIX
            if self._certificate_watcher is not None and not is_unix:
                tls_sockets.append(bound)
                continue
            create_server = loop.create_unix_server if is_unix else loop.create_server
            server = await create_server(
                self._make_protocol, sock=bound, backlog=BACKLOG, start_serving=False
            )
            self._servers.append((bound, server))
        if self._certificate_watcher is not None and tls_sockets:
            self._tls_acceptor = TlsAcceptor(
                tls_sockets,
                self._certificate_watcher.context,
                make_protocol=lambda: FastPathProtocol(self, self._subscribe_handler),
                handshake_seconds=lambda: self._request_seconds,
                available_connections=self._available_connections,
                handshake_failures=self._certificate_watcher.handshake_failures,
                limits=self._limits,
            )
            self._tls_acceptor.start(BACKLOG)
            self._certificate_watcher.start()
        self._sweep()
        for _, server in self._servers:
            await server.start_serving()

    def reconfigure(self, request_seconds: float, write_seconds: float | None = None) -> None:
        """Apply other deadlines to new connections."""
        self._request_seconds = request_seconds
        self._runner._shutdown_timeout = request_seconds
        if write_seconds is not None:
            for listening in self._sockets:
                if listening.family != socket.AF_UNIX and listening.fileno() >= 0:
                    set_user_timeout(listening, write_seconds)

    @property
    def request_connections(self) -> int:
        """How many connections are no streams: in a handshake or a request, or idle between requests."""
        server = self._runner.server
        handled = 0 if server is None else len(server.connections)
        handshaking = 0 if self._tls_acceptor is None else len(self._tls_acceptor)
        return handshaking + len(self._fast_path_deadlines) + handled

    @property
    def port(self) -> int:
        """The port of the first address that has one, the real one if the configuration says 0."""
        return next(filter(None, self.ports), 0)

    @property
    def _sockets(self) -> list[socket.socket]:
        return [bound for sockets in self._sockets_by_address for bound in sockets]

    def stop_accepting(self) -> None:
        """Close the listening sockets.

        Connections go on, also those in the kernel's queue. Harmless when repeated.
        """
        if self._tls_acceptor is not None:
            self._tls_acceptor.accept_queued()
            self._tls_acceptor.close()
        for bound in self._sockets:
            if isinstance(bound, UnixSocket):
                bound.remove_file()
        for bound, server in self._servers:
            if server.is_serving():
                self._accept_queued(bound)
            server.close()
        if not (self._servers or self._tls_acceptor):  # it never started
            for bound in self._sockets:
                bound.close()

    def _accept_queued(self, bound: socket.socket) -> None:
        # Their clients are connected and may have sent a request; closing the socket would reset them.
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                queued, _ = bound.accept()
                queued.setblocking(False)
                task: asyncio.Task[object] = loop.create_task(
                    loop.connect_accepted_socket(self._make_protocol, queued)
                )
                self._queued_accepts.add(task)
                task.add_done_callback(self._on_queued_accepted)

    def _on_queued_accepted(self, task: asyncio.Task[object]) -> None:
        self._queued_accepts.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the connection was lost meanwhile

    async def settle(self) -> None:
        """Wait for the requests of connections that were made just before `stop_accepting`.

        A proxy that has connected sends its request, and may not repeat it at another node.
        """
        began = asyncio.get_running_loop().time()
        for _ in range(round(SETTLE_SECONDS / _SETTLE_TICK_SECONDS)):
            await asyncio.sleep(_SETTLE_TICK_SECONDS)
            is_fresh = self._has_pending_connection_since(began - SETTLE_SECONDS)
            if not (self._queued_accepts or self._tls_acceptor or is_fresh):  # handshakes too
                return

    def _has_pending_connection_since(self, moment: float) -> bool:
        """Return whether a connection that was made after a moment has not sent its request yet."""
        first = moment + self._request_seconds
        return any(first < deadline < math.inf for deadline in self._fast_path_deadlines.values())

    async def stop(self) -> None:
        """Close all connections that are no streams. Harmless when repeated."""
        self.stop_accepting()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        if self._tls_acceptor is not None:
            await self._tls_acceptor.stop()
        if self._certificate_watcher is not None:
            await self._certificate_watcher.stop()
        for task in self._queued_accepts:
            task.cancel()
        opening = [
            protocol.opening_task
            for protocol in self._fast_path_deadlines
            if protocol.opening_task is not None
        ]
        if opening:  # each stream opens, and ends with the reason `draining`
            await asyncio.wait(opening, timeout=self._request_seconds)
        for protocol in list(self._fast_path_deadlines):
            protocol.force_close()
        await self._runner.cleanup()

    def on_connect(self, protocol: FastPathProtocol) -> None:
        """Count a new connection, with TLS after its handshake, and set its deadline.

        A connection over the limit of its address is aborted; with TLS that was before the handshake.
        """
        if self._on_traffic is not None:
            self._on_traffic()
        is_counted = self._tls_acceptor is not None and self._tls_acceptor.finish_handshake(protocol)
        if self._limits is not None and not is_counted:
            caller = self._limits.caller(protocol.transport)
            if not self._limits.addresses.try_add_connection(caller.address_usage):
                protocol.force_close()
                self._limits.count_rejected_connection()
                return
            protocol.caller = caller
        self._fast_path_deadlines[protocol] = self._clock() + self._request_seconds

    def on_close(self, protocol: FastPathProtocol) -> None:
        """Forget a connection that is gone, or that became a stream. Harmless when repeated."""
        if self._fast_path_deadlines.pop(protocol, None) is not None:
            self._release_connection(protocol.caller)

    def on_request(self, protocol: FastPathProtocol, *, is_admitted: bool) -> None:
        """End the deadline of a connection whose request waits: what it waits for has its own.

        An admitted one counts as a stream of its address from now on, and no longer as a connection.
        """
        self._fast_path_deadlines[protocol] = math.inf
        if is_admitted:
            self._release_connection(protocol.caller)
            protocol.caller = UNKNOWN_CALLER

    def make_aiohttp_protocol(self, protocol: FastPathProtocol) -> web.RequestHandler:
        """Return aiohttp's protocol for a request that the fast path does not answer.

        It keeps the deadline.
        """
        server = self._runner.server
        assert server is not None
        handler = AiohttpProtocol(
            server, loop=asyncio.get_running_loop(), caller=protocol.caller, **self._options
        )
        self._aiohttp_deadlines[handler] = self._fast_path_deadlines.pop(protocol)
        return handler

    def _release_connection(self, caller: Caller) -> None:
        if self._limits is not None:
            self._limits.addresses.remove_connection(caller.address_usage)

    def _make_protocol(self) -> asyncio.Protocol:
        return FastPathProtocol(self, self._subscribe_handler) if self._can_accept() else _AbortProtocol()

    def _can_accept(self) -> bool:
        # Computed for a batch of connections (row storm), and for at most half of what is left.
        if self._accept_credit <= 0:
            self._accept_credit = min(_ACCEPT_BATCH, (self._available_connections() + 1) // 2)
        self._accept_credit -= 1
        return self._accept_credit >= 0

    @web.middleware
    async def _on_aiohttp_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._aiohttp_deadlines.pop(request.protocol, None)
        if request.version not in SUPPORTED_HTTP_VERSIONS:
            # `AiohttpProtocol` refuses it earlier, unless aiohttp changed; this response would have that
            # version.
            request.protocol.force_close()
            raise ConnectionAbortedError("the request's HTTP version is not supported")
        return await handler(request)

    async def _announce_close(self, request: web.Request, response: web.StreamResponse) -> None:
        # aiohttp closes the connection if the rest of a body does not arrive within `LINGER_SECONDS`.
        is_unread = not request.content.is_eof() and not isinstance(response, EarlyResponse)
        if is_unread or self._is_draining():
            close_connection_after(response)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._sweep_timer = loop.call_later(
            min(_SWEEP_SECONDS, self._request_seconds / 4), self._guarded_sweep
        )
        if self._tls_acceptor is not None:
            self._tls_acceptor.close_expired()
        for protocol in self._pop_expired(self._fast_path_deadlines, now):
            self._release_connection(protocol.caller)
            self._force_close(protocol)
        for handler in self._pop_expired(self._aiohttp_deadlines, now):
            self._force_close(handler)

    def _force_close(self, protocol: FastPathProtocol | web.RequestHandler) -> None:
        try:
            protocol.force_close()
        except Exception as error:  # one failure must not spare the others
            self._background.record_failure("connection_sweep", error)

    @staticmethod
    def _pop_expired(deadlines: dict[ProtocolT, float], now: float) -> list[ProtocolT]:
        """Remove and return the protocols whose deadline has passed."""
        late = [protocol for protocol, deadline in deadlines.items() if deadline <= now]
        for protocol in late:
            del deadlines[protocol]
        return late
