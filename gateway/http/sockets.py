"""Sockets that listen: options that accepted connections inherit, and one line for what went wrong."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from gateway.config.model.units import Address, Place, UnixPath
from gateway.core.errors import StartupError

SEND_BUFFER = 64 * 1024
"""Bytes of SO_SNDBUF: what the kernel takes for a client that does not read."""

NOT_SENT_LOW = 16 * 1024
"""Bytes not yet sent at which the kernel asks for more (TCP_NOTSENT_LOWAT)."""

UNIX_MODE = 0o666
"""Permissions of a Unix socket: those of a port of 127.0.0.1. Its folder decides who may come so far."""


class Socket(Protocol):
    """A socket, or what an event loop shows of it."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


class Inherited(NamedTuple):
    """A Unix socket that the parent of workers bound: its path, and its number in this process."""

    path: str
    number: int

    def __str__(self) -> str:
        return str(UnixPath(self.path))


Bindable = Place | Inherited


def bind(
    address: Bindable,
    key: str,
    *,
    is_shared: bool = False,
    write_seconds: float | None = None,
    only_ipv6: bool = False,
) -> list[socket.socket]:
    """Return sockets that are bound to an address: several where its name has several addresses.

    ``*`` is every address of this machine. ``is_shared`` lets other processes of this user listen there too
    (SO_REUSEPORT): the kernel spreads the connections over them. Raises StartupError with one line that names
    the ``key`` of the configuration.
    """
    try:
        if isinstance(address, Inherited):
            inherited = socket.socket(fileno=address.number)
            inherited.setblocking(False)
            return [inherited]
        if isinstance(address, UnixPath):
            return [UnixSocket(address.path)]
        return _bind(address, is_shared=is_shared, write_seconds=write_seconds, only_ipv6=only_ipv6)
    except OSError as error:
        raise cannot_listen(address, key, error) from None


def bind_all(
    addresses: Sequence[Bindable], key: str, *, is_shared: bool = False, write_seconds: float | None = None
) -> list[list[socket.socket]]:
    """Return what `bind` does for each address; all or none. Raises StartupError."""
    with ExitStack() as stack:
        bound = []
        for address in addresses:
            found = bind(
                address,
                key,
                is_shared=is_shared,
                write_seconds=write_seconds,
                only_ipv6=_has_ipv4(address, addresses),
            )
            for each in found:
                stack.callback(each.close)
            bound.append(found)
        stack.pop_all()
    return bound


def _has_ipv4(address: Bindable, addresses: Sequence[Bindable]) -> bool:
    """Tell whether ``[::]:port`` stands beside another address of that port: it is no IPv4 port then."""
    return (
        isinstance(address, Address)
        and address.host == "::"
        and any(
            isinstance(each, Address) and each.port == address.port and ":" not in each.host
            for each in addresses
        )
    )


def _bind(
    address: Address, *, is_shared: bool, write_seconds: float | None, only_ipv6: bool
) -> list[socket.socket]:
    """Return the sockets of one address, of which some may be missing. Raises OSError where all are."""
    found = list(dict.fromkeys((family, where) for family, _, _, _, where in _resolve(address)))
    failed: OSError | None = None
    bound: list[socket.socket] = []
    try:
        for family, where in found:
            # All of them have the port that the first one got.
            port = bound[0].getsockname()[1] if bound else where[1]
            try:
                bound.append(
                    _bind_one(family, (where[0], port, *where[2:]), is_shared, write_seconds, only_ipv6)
                )
            except OSError as error:
                # A name may have an address that this machine has not: ::1 where IPv6 is switched off.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                failed = error
            if bound and address.host == "*":
                break  # the socket of [::] takes IPv4 too
        if not bound:
            raise failed or OSError(errno.EADDRNOTAVAIL, "")
    except BaseException:
        for each in bound:
            each.close()
        raise
    return bound


def _resolve(address: Address) -> list[tuple[int, int, int, str, tuple[str | int, ...]]]:
    if address.host == "*":
        any_ipv4 = "0.0.0.0"  # noqa: S104 -- where there is no IPv6
        every: list[tuple[int, str]] = [(socket.AF_INET6, "::"), (socket.AF_INET, any_ipv4)]
        return [(family, 0, 0, "", (host, address.port)) for family, host in every]
    return list(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))  # type: ignore[arg-type]


def _bind_one(
    family: int,
    where: tuple[str | int, ...],
    is_shared: bool,
    write_seconds: float | None,
    only_ipv6: bool,
) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            is_only = only_ipv6 or where[0] != "::"
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_only)
        if write_seconds is not None:
            _limit_kernel(bound, write_seconds)
        bound.bind(where)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


class UnixSocket(socket.socket):
    """A Unix socket with its file, which goes with it. A file that a dead process left is replaced.

    A lock on a file beside it says that the process lives: one that is bound, and does not listen yet, looks
    like one that is dead.
    """

    def __init__(self, path: str) -> None:
        """Bind it. Raises OSError; EADDRINUSE where another process has the path."""
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = Path(path)
        self._file: tuple[int, int] | None = None
        self._lock = -1
        try:
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            _lock(self._lock)
            self._free()
            self.bind(path)
            self._file = _identity(self._path)
            self._path.chmod(UNIX_MODE)
            self.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _free(self) -> None:
        """Take away what a dead process left. Raises OSError where it is no socket, or one that is alive."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise OSError(errno.EEXIST, "a file that is no socket is there")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(str(self._path)) != errno.ECONNREFUSED:
                raise OSError(errno.EADDRINUSE, "")
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it, after `leave`. Harmless when repeated."""
        self.leave()
        super().close()

    def leave(self) -> None:
        """Take its file away, unless that is another one's by now. Harmless when repeated.

        An event loop may close the socket later, and not by `close`.
        """
        own, self._file = self._file, None
        if own is not None and _identity(self._path) == own:
            with suppress(OSError):
                self._path.unlink()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self


def _lock(number: int) -> None:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EADDRINUSE, "") from None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Reserved:
    """Addresses that several processes will listen on: each of them gets `addresses`."""

    def __init__(self, addresses: Sequence[Bindable], unix: Sequence[socket.socket]) -> None:
        self.addresses = tuple(addresses)
        self._unix = unix

    @property
    def numbers(self) -> tuple[int, ...]:
        """The descriptors that the processes need."""
        return tuple(each.number for each in self.addresses if isinstance(each, Inherited))

    @property
    def ports(self) -> list[int]:
        """The port of each address; 0 for a Unix socket."""
        return [each.port if isinstance(each, Address) else 0 for each in self.addresses]

    def release(self) -> None:
        """Close what would still take connections when the processes do not. Harmless when repeated."""
        for each in self._unix:
            each.close()


@contextmanager
def reserve(addresses: Sequence[Place], key: str) -> Iterator[Reserved]:
    """Keep addresses for several processes. Raises StartupError where another process has one.

    SO_REUSEPORT would let a second gateway share the port of a first one without a word, so each address must
    be free for a socket of the ordinary kind first.
    """
    with ExitStack() as stack:
        probes = bind_all(addresses, key)
        for probe in [each for some in probes for each in some]:
            stack.callback(probe.close)
        found: list[Bindable] = []
        unix: list[socket.socket] = []
        for address, sockets in zip(addresses, probes, strict=True):
            if isinstance(address, UnixPath):
                unix += sockets
                found.append(Inherited(address.path, sockets[0].fileno()))
                continue
            found.append(address._replace(port=sockets[0].getsockname()[1]))
            for probe in sockets:
                try:
                    # Bound to one address twice is an error only when one of them listens.
                    probe.listen(1)
                except OSError as error:
                    raise cannot_listen(address, key, error) from None
        for some in probes:
            for probe in some:
                if probe.family != socket.AF_UNIX:
                    probe.close()
        kept = bind_all([each for each in found if isinstance(each, Address)], key, is_shared=True)
        for each in [one for some in kept for one in some]:
            stack.callback(each.close)
        yield Reserved(found, unix)


def _limit_kernel(bound: socket.socket, seconds: float) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW)
    limit_unacknowledged(bound, seconds)


def limit_unacknowledged(bound: Socket, seconds: float) -> None:
    """Let data that is not acknowledged for so long end a connection that is accepted from now on.

    It is a client that vanished without a FIN (RFC 5482).
    """
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(round(seconds * 1000), 2**31 - 1))


def cannot_listen(address: Bindable, key: str, error: OSError) -> StartupError:
    """Return the one line for an address that cannot be bound, or listened on."""
    unused = "not allowed to use that port"
    if not isinstance(address, Address):
        unused = "not allowed to make a file there"
    reason = {
        errno.EADDRINUSE: "the address is in use by another process",
        errno.EACCES: unused,
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, error.strerror or str(error))
    return StartupError(f"cannot listen on {address} ({key}): {reason}")
