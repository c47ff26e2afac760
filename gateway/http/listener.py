"""Listening sockets, and the deadlines of connections that have not asked for anything yet."""

import asyncio
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

from aiohttp import web

from gateway.http.fast_path import LINGER, Front, Heads
from gateway.http.protocol import SPOKEN, OnRefused, Protocol
from gateway.http.responses import EarlyResponse, Handler, close_after
from gateway.http.routes.subscribe import Subscribe
from gateway.http.sockets import Bindable, UnixSocket, bind_all, cannot_listen, limit_unacknowledged
from gateway.http.tls.acceptor import Greeting
from gateway.http.tls.certificates import Certificates
from gateway.observability.background import UNCOUNTED, Background
from gateway.streams.quotas.limits import UNKNOWN, Caller, Limits
from gateway.streams.upgrade import can_retire

BACKLOG = 4096
"""Connections that wait to be accepted: with 128, thousands at once wait 15 s and hundreds fail."""

KEEPALIVE = 75.0
"""Seconds that a connection may idle between two requests."""

SETTLE_SECONDS = 1.0
"""How long a connection that was accepted just before the port closed may take to send its request."""

_SETTLE_TICK = 0.02
_SWEEP = 1.0
_AT_ONCE = 64

P = TypeVar("P")


class _Refuse(asyncio.Protocol):
    """Ends a connection at once: before the descriptors run out and accepting itself fails, in a loop."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]  # a stream's transport has it


class Listener:
    """Addresses and Unix sockets with one application behind them: all of them accept, or none.

    TLS is spoken on all but the Unix sockets.

    A connection that sent no whole request within ``request_seconds`` of being accepted is closed.
    Once it has, aiohttp's keep-alive deadline and the handlers' own take over. ``headers`` are those of
    answers that no handler of the application gives. ``on_traffic`` is called when somebody connects or asks.
    Once ``is_ending`` says so, each response is the last one of its connection: pools of proxies empty
    themselves before the connections are closed.
    """

    def __init__(
        self,
        app: web.Application,
        addresses: Sequence[Bindable],
        *,
        key: str,
        request_seconds: float,
        write_seconds: float | None = None,
        tls: Certificates | None = None,
        is_shared: bool = False,
        room: Callable[[], int] = lambda: _AT_ONCE,
        subscribe: Subscribe | None = None,
        limits: Limits | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        on_traffic: Callable[[], None] | None = None,
        on_refused: OnRefused | None = None,
        is_ending: Callable[[], bool] = lambda: False,
        background: Background = UNCOUNTED,
    ) -> None:
        self._background = background
        self._guarded = background.guarded("connection_sweep", self._sweep)
        # A request under way has its own deadline, the same.
        self._runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=request_seconds)
        self._options: dict[str, Any] = {
            "headers": headers,
            "access_log": None,
            "keepalive_timeout": KEEPALIVE,
            # aiohttp would inflate and read the rest of a body even after it was refused.
            "auto_decompress": False,
            "lingering_time": LINGER,
            "on_lost": self._uncount,
            "on_data": on_traffic,
            "on_refused": on_refused,
        }
        self._on_traffic = on_traffic
        self._addresses = addresses
        self._key = key
        self._request_seconds = request_seconds
        self._write_seconds = write_seconds
        self._tls = tls
        self._is_shared = is_shared
        self._room = room
        self._credit = 0
        self._subscribe = subscribe
        self._limits = limits
        self._fronts: dict[Front, float] = {}
        self._handlers: dict[web.RequestHandler, float] = {}
        self._bound: list[list[socket.socket]] = []
        """The sockets of each address."""
        self._servers: list[tuple[socket.socket, asyncio.Server]] = []
        """Those that the event loop accepts from; the others are `_greeting`'s."""
        self.ports: list[int] = []
        """The port of each address, also where the configuration says 0; 0 for a Unix socket."""
        self._greeting: Greeting | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        # Those that `stop_accepting` took out of the kernel's queue.
        self._last: set[asyncio.Task[object]] = set()
        self._is_ending = is_ending
        app.middlewares.insert(0, self._seen)
        app.on_response_prepare.append(self._announce_end)

    async def bind(self) -> None:
        """Take the addresses; connections are still refused. Harmless when repeated.

        Raises StartupError with one line that names the key of the configuration.
        """
        if self._bound:
            return
        self._bound = bind_all(
            self._addresses, self._key, is_shared=self._is_shared, write_seconds=self._write_seconds
        )
        self.ports = [
            0 if some[0].family == socket.AF_UNIX else some[0].getsockname()[1] for some in self._bound
        ]
        await self._runner.setup()
        assert self._runner.server is not None
        self._options["can_retire"] = await can_retire(self._runner.server)

    async def start(self) -> None:
        """Accept connections on the addresses, and take them first if `bind` has not.

        After `bind` all are open when this first yields to the loop: a signal comes before or after it.
        Raises StartupError like `bind`.
        """
        await self.bind()
        for address, some in zip(self._addresses, self._bound, strict=True):
            for bound in some:
                try:
                    bound.listen(BACKLOG)  # here, because uvloop tells nobody when it fails
                except OSError as error:  # two may be bound to one address until one of them listens
                    raise cannot_listen(address, self._key, error) from None
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self.heads = Heads()
        if self._subscribe is not None and not self.heads.can_parse():
            self._subscribe = None
        # Not started yet: a server that is cancelled while it starts would listen, and nobody could close it.
        shaking = []
        for bound in self._sockets:
            if bound.family == socket.AF_UNIX:
                server = await loop.create_unix_server(
                    self._accept, sock=bound, backlog=BACKLOG, start_serving=False
                )
            elif self._tls is None:
                server = await loop.create_server(
                    self._accept, sock=bound, backlog=BACKLOG, start_serving=False
                )
            else:
                shaking.append(bound)
                continue
            self._servers.append((bound, server))
        if self._tls is not None and shaking:
            self._greeting = Greeting(
                shaking,
                self._tls.context,
                make=lambda: Front(self, self._subscribe),
                seconds=lambda: self._request_seconds,
                room=self._room,
                crowded=self._tls.crowded,
                limits=self._limits,
            )
            self._greeting.start(BACKLOG)
            self._tls.start()
        self._sweep()
        for _, server in self._servers:
            await server.start_serving()

    def reconfigure(self, request_seconds: float, write_seconds: float | None = None) -> None:
        """Take other deadlines, for connections that come from now on."""
        self._request_seconds = request_seconds
        self._runner._shutdown_timeout = request_seconds
        if write_seconds is not None:
            for listening in self._sockets:
                if listening.family != socket.AF_UNIX and listening.fileno() >= 0:
                    limit_unacknowledged(listening, write_seconds)

    @property
    def requests(self) -> int:
        """How many connections are no streams: in a handshake or a request, or idle before or between two."""
        server = self._runner.server
        handled = 0 if server is None else len(server.connections)
        greeted = 0 if self._greeting is None else len(self._greeting)
        return greeted + len(self._fronts) + handled

    @property
    def port(self) -> int:
        """The port of the first address that has one, also where the configuration says 0."""
        return next(filter(None, self.ports), 0)

    @property
    def _sockets(self) -> list[socket.socket]:
        return [bound for some in self._bound for bound in some]

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections go on, those in a queue too. Harmless when repeated."""
        if self._greeting is not None:
            self._greeting.accept_queued()
            self._greeting.close()
        for bound in self._sockets:
            if isinstance(bound, UnixSocket):
                bound.leave()
        for bound, server in self._servers:
            if server.is_serving():
                self._accept_queued(bound)
            server.close()
        if not (self._servers or self._greeting):  # it never started
            for bound in self._sockets:
                bound.close()

    def _accept_queued(self, bound: socket.socket) -> None:
        # Their clients are connected, and have perhaps sent a request: the kernel would reset them.
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while True:
                queued, _ = bound.accept()
                queued.setblocking(False)
                task: asyncio.Task[object] = loop.create_task(
                    loop.connect_accepted_socket(self._accept, queued)
                )
                self._last.add(task)
                task.add_done_callback(self._accepted)

    def _accepted(self, task: asyncio.Task[object]) -> None:
        self._last.discard(task)
        if not task.cancelled():
            task.exception()  # a connection that was lost meanwhile is told to nobody

    async def settle(self) -> None:
        """Wait for the requests of connections that came just before `stop_accepting`.

        A proxy that has connected sends its request, and may not send it to another gateway once it has.
        """
        began = asyncio.get_running_loop().time()
        for _ in range(round(SETTLE_SECONDS / _SETTLE_TICK)):
            await asyncio.sleep(_SETTLE_TICK)
            is_fresh = self._has_asked_nothing_since(began - SETTLE_SECONDS)
            if not (self._last or self._greeting or is_fresh):  # handshakes too
                return

    def _has_asked_nothing_since(self, moment: float) -> bool:
        """Tell whether a connection that came after a moment has not sent its request yet."""
        first = moment + self._request_seconds
        return any(first < deadline < math.inf for deadline in self._fronts.values())

    async def stop(self) -> None:
        """End all connections that are no streams. Harmless when repeated."""
        self.stop_accepting()
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._greeting is not None:
            await self._greeting.stop()
        if self._tls is not None:
            await self._tls.stop()
        for task in self._last:
            task.cancel()
        opening = [front.opening for front in self._fronts if front.opening is not None]
        if opening:  # each is told that the node drains, once the log has answered
            await asyncio.wait(opening, timeout=self._request_seconds)
        for front in list(self._fronts):
            front.force_close()
        await self._runner.cleanup()

    def meets(self, front: Front) -> None:
        """A connection is there; with TLS, after its handshake, which has a deadline of its own.

        One too many of its address is ended; with TLS that was before the handshake.
        """
        if self._on_traffic is not None:
            self._on_traffic()
        is_counted = self._greeting is not None and self._greeting.is_over(front)
        if self._limits is not None and not is_counted:
            caller = self._limits.caller(front.transport)
            if not self._limits.peers.connects(caller.peer):
                front.force_close()
                self._limits.cut()
                return
            front.caller = caller
        self._fronts[front] = self._time() + self._request_seconds

    def leaves(self, front: Front) -> None:
        """A front protocol has no connection any more. Harmless when repeated."""
        if self._fronts.pop(front, None) is not None:
            self._uncount(front.caller)

    def answers(self, front: Front, *, admitted: bool) -> None:
        """A front protocol has a whole request, and what it waits for has a deadline of its own.

        One that is ``admitted`` counts as a stream of its address by now, and not as a connection any more.
        """
        self._fronts[front] = math.inf
        if admitted:
            self._uncount(front.caller)
            front.caller = UNKNOWN

    def handler_for(self, front: Front) -> web.RequestHandler:
        """Return aiohttp's protocol for what a front protocol does not answer. The deadline goes along."""
        server = self._runner.server
        assert server is not None
        handler = Protocol(server, loop=asyncio.get_running_loop(), caller=front.caller, **self._options)
        self._handlers[handler] = self._fronts.pop(front)
        return handler

    def _uncount(self, caller: Caller) -> None:
        if self._limits is not None:
            self._limits.peers.disconnects(caller.peer)

    def _accept(self) -> asyncio.Protocol:
        return Front(self, self._subscribe) if self._admits() else _Refuse()

    def _admits(self) -> bool:
        # Asked for many at a time, and never for more than half of what is left.
        if self._credit <= 0:
            self._credit = min(_AT_ONCE, (self._room() + 1) // 2)
        self._credit -= 1
        return self._credit >= 0

    @web.middleware
    async def _seen(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._handlers.pop(request.protocol, None)
        if request.version not in SPOKEN:
            # `Protocol` answers before this, but where aiohttp changed. Its answer would be in that version.
            request.protocol.force_close()
            raise ConnectionAbortedError("a version that is not spoken here")
        return await handler(request)

    async def _announce_end(self, request: web.Request, response: web.StreamResponse) -> None:
        # aiohttp closes the connection where the rest of a body does not come within `LINGER`.
        is_unread = not request.content.is_eof() and not isinstance(response, EarlyResponse)
        if is_unread or self._is_ending():
            close_after(response)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._sweeper = loop.call_later(min(_SWEEP, self._request_seconds / 4), self._guarded)
        if self._greeting is not None:
            self._greeting.sweep()
        for front in self._late(self._fronts, now):
            self._uncount(front.caller)
            self._cut(front)
        for handler in self._late(self._handlers, now):
            self._cut(handler)

    def _cut(self, protocol: Front | web.RequestHandler) -> None:
        try:
            protocol.force_close()
        except Exception as error:  # the others are late too
            self._background.failed("connection_sweep", error)

    @staticmethod
    def _late(waiting: dict[P, float], now: float) -> list[P]:
        """Take out those whose deadline is over."""
        late = [protocol for protocol, deadline in waiting.items() if deadline <= now]
        for protocol in late:
            del waiting[protocol]
        return late
