"""TLS on the public port: connections are accepted here, and shake hands within bounds.

asyncio and uvloop report a connection only after its handshake. A client that never completes one would hold
memory that no limit counts. Here the address is known before the handshake begins.

How it works. At most `MOST` handshakes are in progress; further connections wait, unread, and addresses take
turns. A connection whose address has less than another one's share does not wait: it takes the place of the
oldest handshake of the address that has most, so nobody is kept out by another who is slow on purpose. Those
in progress and those that wait are together at most half of the connections that there is room for, by the
same rule; and none of them lives longer than a request may take.
"""

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import structlog

from gateway.http.fast_path import Front
from gateway.observability.log_throttle import Seldom
from gateway.streams.quotas.addresses import unit
from gateway.streams.quotas.limits import UNKNOWN, Caller, Limits

log = structlog.get_logger("gateway.http")

MOST = 1000
"""Handshakes in progress: 60 KB each with uvloop, 300 KB without; one core ends as many in a second."""

ACCEPTS = 64
"""Connections that are accepted in one turn of the loop."""

RETRY_SECONDS = 1.0
"""Pause after the system had no descriptor or memory for a connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Accepted:
    """A connection before the end of its handshake."""

    __slots__ = ("address", "caller", "connection", "deadline", "is_given", "task")

    def __init__(
        self, connection: socket.socket, address: "_Address", caller: Caller, deadline: float
    ) -> None:
        self.connection = connection
        self.address = address
        self.caller = caller
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.is_given = False
        """Whether the socket is the event loop's to close: closed here, its number may be another's."""


class _Address:
    """All of one address. A trusted proxy stands for many clients: it ``is_many``, and keeps its places."""

    __slots__ = ("is_many", "name", "shaking", "waiting")

    def __init__(self, name: str, *, is_many: bool) -> None:
        self.name = name
        self.is_many = is_many
        self.shaking: dict[Front, _Accepted] = {}
        self.waiting: deque[_Accepted] = deque()

    def __len__(self) -> int:
        return len(self.shaking) + len(self.waiting)


class Greeting:
    """The listening sockets of a port with TLS, and the connections that did not end their handshake yet.

    ``room`` is how many more connections there may be, ``seconds`` how long a handshake may take now.
    ``make`` gives the protocol of a connection, ``crowded`` counts one that found no place, or lost it.
    """

    def __init__(
        self,
        listening: Sequence[socket.socket],
        context: ssl.SSLContext,
        *,
        make: Callable[[], Front],
        seconds: Callable[[], float],
        room: Callable[[], int],
        crowded: Callable[[], None],
        limits: Limits | None,
    ) -> None:
        self._listening = listening
        self._context = context
        self._make = make
        self._seconds = seconds
        self._room = room
        self._crowded = crowded
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._addresses: dict[str, _Address] = {}
        self._shaking: dict[Front, _Accepted] = {}
        self._queue: dict[str, _Address] = {}
        """Addresses with a connection that waits, in the order of their turns."""
        self._waiting = 0
        self._later: asyncio.TimerHandle | None = None
        self._seldom = Seldom()

    def __len__(self) -> int:
        return len(self._shaking) + self._waiting

    def start(self, backlog: int) -> None:
        """Listen, and accept."""
        for listening in self._listening:
            listening.listen(backlog)
        self._resume()

    def accept_queued(self) -> None:
        """Accept all connections that wait in the kernel's queues: it would reset them at `close`."""
        for listening in self._open():
            while self._accept(listening):
                pass

    def _open(self) -> list[socket.socket]:
        """Return the sockets that listen; none after `close`."""
        return [listening for listening in self._listening if listening.fileno() >= 0]

    def close(self) -> None:
        """Accept no more; handshakes go on. Harmless when repeated."""
        if self._later is not None:
            self._later.cancel()
        for listening in self._open():
            self._loop.remove_reader(listening.fileno())
            listening.close()

    async def stop(self) -> None:
        """End the handshakes too."""
        self.close()
        while (accepted := self._next()) is not None:
            self._end(accepted)
        tasks = [each.task for each in self._shaking.values() if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def sweep(self) -> None:
        """End what waited for too long."""
        now = self._loop.time()
        for address in list(self._queue.values()):
            while address.waiting and address.waiting[0].deadline <= now:
                accepted = address.waiting.popleft()
                self._waiting -= 1
                self._end(accepted)
            self._tidy(address)

    def is_over(self, front: Front) -> bool:
        """Tell whether a connection was accepted here; its handshake is over, and its caller is counted."""
        return self._forget(front) is not None

    # Accepting.

    def _accept(self, listening: socket.socket) -> bool:
        """Accept some; returns whether there may be more."""
        for _ in range(ACCEPTS):
            try:
                connection, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return False
            connection.setblocking(False)
            self._take(connection, name[0])
        return True

    def _pause(self, error: OSError) -> None:
        """Leave connections in the kernel's queues for a while: a socket would be ready again at once."""
        times = self._seldom.tell(error.errno)
        if times is not None:
            log.error("accept_failed", error=error.strerror, times=times)
        for listening in self._open():
            self._loop.remove_reader(listening.fileno())
        self._later = self._loop.call_later(RETRY_SECONDS, self._resume)

    def _resume(self) -> None:
        for listening in self._open():
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _take(self, connection: socket.socket, name: str) -> None:
        address, caller = self._address(name), UNKNOWN
        if len(self) >= (self._room() + len(self) + 1) // 2 and not self._make_room(address):
            self._crowded()
            connection.close()
            return
        if self._limits is not None:
            caller = Caller(name, self._limits.peers.of(name))
            if not self._limits.peers.connects(caller.peer):
                self._limits.cut()
                connection.close()
                return
        self._addresses[address.name] = address
        accepted = _Accepted(connection, address, caller, self._loop.time() + self._seconds())
        if len(self._shaking) < MOST or self._make_way(address):
            self._shake(accepted)
        else:
            address.waiting.append(accepted)
            self._waiting += 1
            self._queue.setdefault(address.name, address)

    def _address(self, name: str) -> _Address:
        own = unit(name)
        known = self._addresses.get(own)
        if known is not None:
            return known
        return _Address(own, is_many=self._limits is not None and self._limits.proxies.trusts(name))

    def _make_room(self, address: _Address) -> bool:
        """End one of the address that has most; False where that is the one which wants another."""
        most = _most(self._addresses.values(), len)
        if most is None or (not address.is_many and len(address) + 1 >= len(most)):
            return False
        self._crowded()
        if most.waiting:
            accepted = most.waiting.popleft()
            self._waiting -= 1
            self._end(accepted)
            self._tidy(most)
        else:
            self._cut(next(iter(most.shaking)))
        return True

    def _make_way(self, address: _Address) -> bool:
        """End the oldest handshake of the address with most, where that has more than its share."""
        most = _most({each.address for each in self._shaking.values()}, lambda each: len(each.shaking))
        if most is None or len(most.shaking) <= len(address.shaking) + 1:
            return False
        self._crowded()
        self._cut(next(iter(most.shaking)))
        return True

    # Handshakes.

    def _shake(self, accepted: _Accepted) -> None:
        front = self._make()
        front.caller = accepted.caller
        self._shaking[front] = accepted.address.shaking[front] = accepted
        accepted.task = self._loop.create_task(self._handshake(accepted, front), name="TLS handshake")
        # Also of one that is cancelled before it begins.
        accepted.task.add_done_callback(lambda _: self._done(front, accepted))

    async def _handshake(self, accepted: _Accepted, front: Front) -> None:
        # Its context counts a failure (`gateway.http.tls.handshake_errors`), without a line in the log.
        with suppress(OSError):
            accepted.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.is_given = True
            await self._loop.connect_accepted_socket(
                lambda: front,
                accepted.connection,
                ssl=self._context,
                ssl_handshake_timeout=max(accepted.deadline - self._loop.time(), 0.001),
            )

    def _done(self, front: Front, accepted: _Accepted) -> None:
        if self._forget(front) is not None:  # it failed
            self._end(accepted)
        while len(self._shaking) < MOST and (waiting := self._next()) is not None:
            self._shake(waiting)

    def _next(self) -> _Accepted | None:
        """Take out who waited longest of the address whose turn it is."""
        if not self._queue:
            return None
        address = self._queue.pop(next(iter(self._queue)))
        accepted = address.waiting.popleft()
        self._waiting -= 1
        if address.waiting:
            self._queue[address.name] = address
        return accepted

    def _cut(self, front: Front) -> None:
        accepted = self._forget(front)
        assert accepted is not None
        if accepted.task is not None:
            accepted.task.cancel()
        self._end(accepted)

    def _end(self, accepted: _Accepted) -> None:
        if not accepted.is_given:
            accepted.connection.close()
        if self._limits is not None:
            self._limits.peers.disconnects(accepted.caller.peer)
        self._tidy(accepted.address)

    def _forget(self, front: Front) -> _Accepted | None:
        accepted = self._shaking.pop(front, None)
        if accepted is not None:
            del accepted.address.shaking[front]
            self._tidy(accepted.address)
        return accepted

    def _tidy(self, address: _Address) -> None:
        if not address.waiting:
            self._queue.pop(address.name, None)
            if not address.shaking:
                self._addresses.pop(address.name, None)


def _most(addresses: Iterable[_Address], count: Callable[[_Address], int]) -> _Address | None:
    """Return the address with most that is not many clients'."""
    return max((each for each in addresses if not each.is_many), key=count, default=None)
