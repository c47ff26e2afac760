"""Accepts TLS connections on the public port, and bounds their handshakes.

asyncio and uvloop report a connection only after its handshake, so a client that never completes one would
hold memory that no limit counts. Here the address is known before the handshake begins.

How it works. At most `MAX_HANDSHAKES` handshakes are in progress. Further connections wait, unread, and
addresses take turns. A connection whose address has less than its share does not wait: it evicts the oldest
handshake of the address that has most, so a client that is slow on purpose keeps nobody out. Handshakes and
waiting connections together are at most half of the connections that there is room for, by the same rule.
None of them lives longer than a request may take.
"""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import structlog
from prometheus_client import Counter

from gateway.http.fast_path import FastPathProtocol
from gateway.observability.log_throttle import LogThrottle
from gateway.streams.quotas.client_address import address_key
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, Caller, ClientLimits

log = structlog.get_logger("gateway.http")

MAX_HANDSHAKES = 1000
"""Most handshakes in progress: 60 KB each with uvloop, 300 KB without. A core completes as many a second."""

ACCEPTS_PER_TURN = 64
"""Most connections that are accepted in one turn of the loop."""

ACCEPT_RETRY_SECONDS = 1.0
"""Seconds without accepting after the system had no descriptor or memory for a connection."""

_EXHAUSTION_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _PendingConnection:
    """A connection before the end of its handshake."""

    __slots__ = ("address", "caller", "connection", "deadline", "is_owned_by_loop", "task")

    def __init__(
        self, connection: socket.socket, address: "_ClientAddress", caller: Caller, deadline: float
    ) -> None:
        self.connection = connection
        self.address = address
        self.caller = caller
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.is_owned_by_loop = False
        """Whether the event loop closes the socket.

        Closed here too, its descriptor may be another socket's by then.
        """


class _ClientAddress:
    """The connections of one address. A trusted proxy stands for many clients and is never evicted."""

    __slots__ = ("handshakes", "is_proxy", "name", "waiting")

    def __init__(self, name: str, *, is_proxy: bool) -> None:
        self.name = name
        self.is_proxy = is_proxy
        self.handshakes: dict[FastPathProtocol, _PendingConnection] = {}
        self.waiting: deque[_PendingConnection] = deque()

    def __len__(self) -> int:
        return len(self.handshakes) + len(self.waiting)


class TlsAcceptor:
    """The listening sockets of a port with TLS, and the connections whose handshake is not complete.

    ``available_connections`` returns how many more connections there may be, ``handshake_seconds`` how long a
    handshake may take now. ``handshake_failures`` counts connections that are rejected or evicted.
    """

    def __init__(
        self,
        listen_sockets: Sequence[socket.socket],
        context: ssl.SSLContext,
        *,
        make_protocol: Callable[[], FastPathProtocol],
        handshake_seconds: Callable[[], float],
        available_connections: Callable[[], int],
        handshake_failures: Counter,
        limits: ClientLimits | None,
    ) -> None:
        self._listen_sockets = listen_sockets
        self._context = context
        self._make_protocol = make_protocol
        self._handshake_seconds = handshake_seconds
        self._available_connections = available_connections
        self._handshake_failures = handshake_failures
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._addresses: dict[str, _ClientAddress] = {}
        self._handshakes: dict[FastPathProtocol, _PendingConnection] = {}
        self._waiting_addresses: dict[str, _ClientAddress] = {}
        """Addresses with a waiting connection, in the order of their turns."""
        self._waiting_count = 0
        self._retry_timer: asyncio.TimerHandle | None = None
        self._log_throttle = LogThrottle()

    def __len__(self) -> int:
        return len(self._handshakes) + self._waiting_count

    def start(self, backlog: int) -> None:
        """Listen, and accept."""
        for listening in self._listen_sockets:
            listening.listen(backlog)
        self._resume_accepting()

    def accept_queued(self) -> None:
        """Accept all connections in the kernel's queues, which would be reset at `close`."""
        for listening in self._open_sockets():
            while self._accept_batch(listening):
                pass

    def _open_sockets(self) -> list[socket.socket]:
        """Return the listening sockets; none after `close`."""
        return [listening for listening in self._listen_sockets if listening.fileno() >= 0]

    def close(self) -> None:
        """Stop accepting; handshakes go on. Harmless when repeated."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        for listening in self._open_sockets():
            self._loop.remove_reader(listening.fileno())
            listening.close()

    async def stop(self) -> None:
        """End the handshakes too."""
        self.close()
        while (accepted := self._pop_waiting()) is not None:
            self._close_connection(accepted)
        tasks = [each.task for each in self._handshakes.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close_expired(self) -> None:
        """Close connections that waited for their handshake for too long."""
        now = self._loop.time()
        for address in list(self._waiting_addresses.values()):
            while address.waiting and address.waiting[0].deadline <= now:
                accepted = address.waiting.popleft()
                self._waiting_count -= 1
                self._close_connection(accepted)
            self._remove_if_idle(address)

    def finish_handshake(self, protocol: FastPathProtocol) -> bool:
        """Return whether a connection was accepted here, which is complete and counted by its address."""
        return self._remove_handshake(protocol) is not None

    # Accepting.

    def _accept_batch(self, listen_socket: socket.socket) -> bool:
        """Accept some connections. Returns whether there may be more."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, name = listen_socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in _EXHAUSTION_ERRNOS:
                    raise
                self._pause_accepting(error)
                return False
            connection.setblocking(False)
            self._admit(connection, name[0])
        return True

    def _pause_accepting(self, error: OSError) -> None:
        """Leave connections in the kernel's queues for a while: retrying at once would be a busy loop."""
        times = self._log_throttle.should_log(error.errno)
        if times is not None:
            log.error("accept_failed", error=error.strerror, times=times)
        for listening in self._open_sockets():
            self._loop.remove_reader(listening.fileno())
        self._retry_timer = self._loop.call_later(ACCEPT_RETRY_SECONDS, self._resume_accepting)

    def _resume_accepting(self) -> None:
        for listening in self._open_sockets():
            self._loop.add_reader(listening.fileno(), self._accept_batch, listening)

    def _admit(self, connection: socket.socket, name: str) -> None:
        address, caller = self._address_of(name), UNKNOWN_CALLER
        if len(self) >= (self._available_connections() + len(self) + 1) // 2 and not self._evict_connection(
            address
        ):
            self._count_rejected()
            connection.close()
            return
        if self._limits is not None:
            caller = Caller(name, self._limits.addresses.usage_of(name))
            if not self._limits.addresses.try_add_connection(caller.address_usage):
                self._limits.count_rejected_connection()
                connection.close()
                return
        self._addresses[address.name] = address
        pending = _PendingConnection(
            connection, address, caller, self._loop.time() + self._handshake_seconds()
        )
        if len(self._handshakes) < MAX_HANDSHAKES or self._evict_handshake(address):
            self._start_handshake(pending)
        else:
            address.waiting.append(pending)
            self._waiting_count += 1
            self._waiting_addresses.setdefault(address.name, address)

    def _address_of(self, name: str) -> _ClientAddress:
        own = address_key(name)
        known = self._addresses.get(own)
        if known is not None:
            return known
        return _ClientAddress(
            own, is_proxy=self._limits is not None and self._limits.proxies.is_trusted(name)
        )

    def _evict_connection(self, address: _ClientAddress) -> bool:
        """Evict a connection of the address with most. Returns False if that is this address itself."""
        most = _busiest(self._addresses.values(), len)
        if most is None or (not address.is_proxy and len(address) + 1 >= len(most)):
            return False
        self._count_rejected()
        if most.waiting:
            accepted = most.waiting.popleft()
            self._waiting_count -= 1
            self._close_connection(accepted)
            self._remove_if_idle(most)
        else:
            self._cancel_handshake(next(iter(most.handshakes)))
        return True

    def _count_rejected(self) -> None:
        self._handshake_failures.labels("too_many_unfinished").inc()

    def _evict_handshake(self, address: _ClientAddress) -> bool:
        """Evict the oldest handshake of the address with most, if that has more than its share."""
        most = _busiest(
            {each.address for each in self._handshakes.values()}, lambda each: len(each.handshakes)
        )
        if most is None or len(most.handshakes) <= len(address.handshakes) + 1:
            return False
        self._count_rejected()
        self._cancel_handshake(next(iter(most.handshakes)))
        return True

    # Handshakes.

    def _start_handshake(self, pending: _PendingConnection) -> None:
        protocol = self._make_protocol()
        protocol.caller = pending.caller
        self._handshakes[protocol] = pending.address.handshakes[protocol] = pending
        pending.task = self._loop.create_task(self._run_handshake(pending, protocol), name="TLS handshake")
        # A callback, as a task that is cancelled before its first step runs no `finally`.
        pending.task.add_done_callback(lambda _: self._on_handshake_done(protocol, pending))

    async def _run_handshake(self, pending: _PendingConnection, protocol: FastPathProtocol) -> None:
        # Its context counts a failure (`gateway.http.tls.handshake_errors`), without a line in the log.
        with suppress(OSError):
            pending.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pending.is_owned_by_loop = True
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                pending.connection,
                ssl=self._context,
                ssl_handshake_timeout=max(pending.deadline - self._loop.time(), 0.001),
            )

    def _on_handshake_done(self, protocol: FastPathProtocol, pending: _PendingConnection) -> None:
        if self._remove_handshake(protocol) is not None:  # it failed
            self._close_connection(pending)
        while len(self._handshakes) < MAX_HANDSHAKES and (waiting := self._pop_waiting()) is not None:
            self._start_handshake(waiting)

    def _pop_waiting(self) -> _PendingConnection | None:
        """Remove the connection that waited longest, of the address whose turn it is."""
        if not self._waiting_addresses:
            return None
        address = self._waiting_addresses.pop(next(iter(self._waiting_addresses)))
        accepted = address.waiting.popleft()
        self._waiting_count -= 1
        if address.waiting:
            self._waiting_addresses[address.name] = address
        return accepted

    def _cancel_handshake(self, protocol: FastPathProtocol) -> None:
        accepted = self._remove_handshake(protocol)
        assert accepted is not None
        if accepted.task is not None:
            accepted.task.cancel()
        self._close_connection(accepted)

    def _close_connection(self, pending: _PendingConnection) -> None:
        if not pending.is_owned_by_loop:
            pending.connection.close()
        if self._limits is not None:
            self._limits.addresses.remove_connection(pending.caller.address_usage)
        self._remove_if_idle(pending.address)

    def _remove_handshake(self, protocol: FastPathProtocol) -> _PendingConnection | None:
        accepted = self._handshakes.pop(protocol, None)
        if accepted is not None:
            del accepted.address.handshakes[protocol]
            self._remove_if_idle(accepted.address)
        return accepted

    def _remove_if_idle(self, address: _ClientAddress) -> None:
        if not address.waiting:
            self._waiting_addresses.pop(address.name, None)
            if not address.handshakes:
                self._addresses.pop(address.name, None)


def _busiest(
    addresses: Iterable[_ClientAddress], count: Callable[[_ClientAddress], int]
) -> _ClientAddress | None:
    """Return the address with most connections that is no proxy's."""
    return max((each for each in addresses if not each.is_proxy), key=count, default=None)
