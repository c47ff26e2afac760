"""Sockets that listen: options that accepted connections inherit, and one line for what went wrong."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from gateway.config.units import Address
from gateway.errors import StartupError

SEND_BUFFER = 64 * 1024
"""Bytes of SO_SNDBUF: what the kernel takes for a client that does not read."""

NOT_SENT_LOW = 16 * 1024
"""Bytes not yet sent at which the kernel asks for more (TCP_NOTSENT_LOWAT)."""


class Socket(Protocol):
    """A socket, or what an event loop shows of it."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


def bind(
    address: Address | str, key: str, *, is_shared: bool = False, write_seconds: float | None = None
) -> socket.socket:
    """Return a socket that is bound to an address, or to the path of a Unix socket.

    ``is_shared`` lets other processes of this user listen there too (SO_REUSEPORT): the kernel spreads the
    connections over them. Raises StartupError with one line that names the ``key`` of the configuration.
    """
    if isinstance(address, str):
        return _bind_path(address, key)
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise cannot_listen(address, key, error) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and address.host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if write_seconds is not None:
            _limit_kernel(bound, write_seconds)
        bound.bind(where)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise cannot_listen(address, key, error) from None
    return bound


@contextmanager
def reserve_port(address: Address, key: str) -> Iterator[int]:
    """Keep an address for several processes, and give its port. Raises StartupError where another has it.

    SO_REUSEPORT would let a second gateway share the port of a first one without a word, so the address must
    be free for a socket of the ordinary kind first.
    """
    with bind(address, key) as probe:
        port: int = probe.getsockname()[1]
        probe.listen(1)  # bound to one address twice is an error only when one of them listens
    with bind(address._replace(port=port), key, is_shared=True):
        yield port


def _bind_path(path: str, key: str) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise cannot_listen(path, key, error) from None
    return bound


def _limit_kernel(bound: socket.socket, seconds: float) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW)
    limit_unacknowledged(bound, seconds)


def limit_unacknowledged(bound: Socket, seconds: float) -> None:
    """Let data that is not acknowledged for so long end a connection that is accepted from now on.

    It is a client that vanished without a FIN (RFC 5482).
    """
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(round(seconds * 1000), 2**31 - 1))


def cannot_listen(address: Address | str, key: str, error: OSError) -> StartupError:
    """Return the one line for an address that cannot be bound, or listened on."""
    reason = {
        errno.EADDRINUSE: "the address is in use by another process",
        errno.EACCES: "not allowed to use that port",
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, error.strerror or str(error))
    return StartupError(f"cannot listen on {address} ({key}): {reason}")
