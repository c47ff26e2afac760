"""Binds listening sockets, with the options that accepted connections inherit."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from gateway.config.model.value_types import ListenAddress, TcpAddress, UnixSocketPath
from gateway.core.errors import StartupError

SEND_BUFFER_BYTES = 64 * 1024
"""Bytes of SO_SNDBUF: how much the kernel buffers for a client that does not read."""

NOTSENT_LOWAT_BYTES = 16 * 1024
"""Unsent bytes below which the kernel reports a socket as writable (TCP_NOTSENT_LOWAT)."""

UNIX_MODE = 0o666
"""Permissions of a Unix socket: anyone may connect, as to a port of 127.0.0.1.

Its folder restricts access.
"""


class SupportsSetsockopt(Protocol):
    """A socket, or an event loop's view of it."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


class InheritedSocket(NamedTuple):
    """A Unix socket that the parent of workers bound: its path, and its descriptor in this process."""

    path: str
    fd: int

    def __str__(self) -> str:
        return str(UnixSocketPath(self.path))


BindableAddress = ListenAddress | InheritedSocket


def bind_address(
    address: BindableAddress,
    config_key: str,
    *,
    is_shared: bool = False,
    write_seconds: float | None = None,
    is_ipv6_only: bool = False,
) -> list[socket.socket]:
    """Return sockets that are bound to an address: several if its host name has several addresses.

    ``*`` is every address of this machine. ``is_shared`` lets other processes of this user listen there too
    (SO_REUSEPORT): the kernel distributes the connections. Raises StartupError, which names ``config_key``.
    """
    try:
        if isinstance(address, InheritedSocket):
            inherited = socket.socket(fileno=address.fd)
            inherited.setblocking(False)
            return [inherited]
        if isinstance(address, UnixSocketPath):
            return [UnixSocket(address.path)]
        return _bind_tcp(address, is_shared=is_shared, write_seconds=write_seconds, is_ipv6_only=is_ipv6_only)
    except OSError as error:
        raise listen_error(address, config_key, error) from None


def bind_all(
    addresses: Sequence[BindableAddress],
    config_key: str,
    *,
    is_shared: bool = False,
    write_seconds: float | None = None,
) -> list[list[socket.socket]]:
    """Return the bound sockets of each address; all or none. Raises StartupError."""
    with ExitStack() as stack:
        bound = []
        for address in addresses:
            found = bind_address(
                address,
                config_key,
                is_shared=is_shared,
                write_seconds=write_seconds,
                is_ipv6_only=_has_ipv4_sibling(address, addresses),
            )
            for each in found:
                stack.callback(each.close)
            bound.append(found)
        stack.pop_all()
    return bound


def _has_ipv4_sibling(address: BindableAddress, addresses: Sequence[BindableAddress]) -> bool:
    """Return whether ``[::]:port`` stands beside an IPv4 address of that port: it is for IPv6 alone then."""
    return (
        isinstance(address, TcpAddress)
        and address.host == "::"
        and any(
            isinstance(each, TcpAddress) and each.port == address.port and ":" not in each.host
            for each in addresses
        )
    )


def _bind_tcp(
    address: TcpAddress, *, is_shared: bool, write_seconds: float | None, is_ipv6_only: bool
) -> list[socket.socket]:
    """Return the sockets of one address; some of several may be missing.

    Raises OSError if none can be bound.
    """
    found = list(dict.fromkeys((family, where) for family, _, _, _, where in _resolve(address)))
    failed: OSError | None = None
    bound: list[socket.socket] = []
    try:
        for family, where in found:
            # All get the port of the first, which the kernel may have chosen.
            port = bound[0].getsockname()[1] if bound else where[1]
            try:
                bound.append(
                    _bind_socket(family, (where[0], port, *where[2:]), is_shared, write_seconds, is_ipv6_only)
                )
            except OSError as error:
                # A name may have an address that this machine lacks, such as ::1 without IPv6.
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


def _resolve(address: TcpAddress) -> list[tuple[int, int, int, str, tuple[str | int, ...]]]:
    if address.host == "*":
        any_ipv4 = "0.0.0.0"  # noqa: S104 -- where there is no IPv6
        every: list[tuple[int, str]] = [(socket.AF_INET6, "::"), (socket.AF_INET, any_ipv4)]
        return [(family, 0, 0, "", (host, address.port)) for family, host in every]
    return list(socket.getaddrinfo(*address, type=socket.SOCK_STREAM))  # type: ignore[arg-type]


def _bind_socket(
    family: int,
    socket_address: tuple[str | int, ...],
    is_shared: bool,
    write_seconds: float | None,
    is_ipv6_only: bool,
) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if is_shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            is_only = is_ipv6_only or socket_address[0] != "::"
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_only)
        if write_seconds is not None:
            _limit_send_buffer(bound, write_seconds)
        bound.bind(socket_address)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


class UnixSocket(socket.socket):
    """A Unix socket that removes its file when it closes, and replaces the file of a dead process.

    A lock on a file beside it shows that its process lives: a socket that is bound and does not listen yet
    looks like a dead one.
    """

    def __init__(self, path: str) -> None:
        """Bind it. Raises OSError, EADDRINUSE if another process has the path."""
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._path = Path(path)
        self._file_identity: tuple[int, int] | None = None
        self._lock_fd = -1
        try:
            self._lock_fd = os.open(
                f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            _lock_exclusively(self._lock_fd)
            self._remove_stale_file()
            self.bind(path)
            self._file_identity = _file_identity(self._path)
            self._path.chmod(UNIX_MODE)
            self.setblocking(False)
        except BaseException:
            self.close()
            raise

    def _remove_stale_file(self) -> None:
        """Remove the file of a dead process. Raises OSError if it is no socket, or is in use."""
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
        """Remove its file and close it. Harmless when repeated."""
        self.remove_file()
        super().close()

    def remove_file(self) -> None:
        """Remove its file, unless another process has replaced it. Harmless when repeated.

        Apart from `close`, because an event loop closes the descriptor later and without that method.
        """
        own, self._file_identity = self._file_identity, None
        if own is not None and _file_identity(self._path) == own:
            with suppress(OSError):
                self._path.unlink()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        return self


def _lock_exclusively(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EADDRINUSE, "") from None


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class ReservedAddresses:
    """Addresses that several processes will listen on; each process gets `addresses`."""

    def __init__(self, addresses: Sequence[BindableAddress], unix_sockets: Sequence[socket.socket]) -> None:
        self.addresses = tuple(addresses)
        self._unix_sockets = unix_sockets

    @property
    def inherited_fds(self) -> tuple[int, ...]:
        """The descriptors that the processes inherit."""
        return tuple(each.fd for each in self.addresses if isinstance(each, InheritedSocket))

    @property
    def ports(self) -> list[int]:
        """The port of each address; 0 for a Unix socket."""
        return [each.port if isinstance(each, TcpAddress) else 0 for each in self.addresses]

    def release(self) -> None:
        """Close the Unix sockets, which would queue connections after the processes ended.

        Harmless when repeated.
        """
        for each in self._unix_sockets:
            each.close()


@contextmanager
def reserve_addresses(addresses: Sequence[ListenAddress], config_key: str) -> Iterator[ReservedAddresses]:
    """Reserve addresses for several processes. Raises StartupError if another process uses one.

    SO_REUSEPORT would let a second gateway share the port of a first one unnoticed, so each address must
    first be free for an ordinary socket.
    """
    with ExitStack() as stack:
        probes = bind_all(addresses, config_key)
        for probe in [each for some in probes for each in some]:
            stack.callback(probe.close)
        found: list[BindableAddress] = []
        unix: list[socket.socket] = []
        for address, sockets in zip(addresses, probes, strict=True):
            if isinstance(address, UnixSocketPath):
                unix += sockets
                found.append(InheritedSocket(address.path, sockets[0].fileno()))
                continue
            found.append(address._replace(port=sockets[0].getsockname()[1]))
            for probe in sockets:
                try:
                    # Binding one address twice is an error only when one of the sockets listens.
                    probe.listen(1)
                except OSError as error:
                    raise listen_error(address, config_key, error) from None
        for some in probes:
            for probe in some:
                if probe.family != socket.AF_UNIX:
                    probe.close()
        kept = bind_all([each for each in found if isinstance(each, TcpAddress)], config_key, is_shared=True)
        for each in [one for some in kept for one in some]:
            stack.callback(each.close)
        yield ReservedAddresses(found, unix)


def _limit_send_buffer(bound: socket.socket, seconds: float) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    set_user_timeout(bound, seconds)


def set_user_timeout(bound: SupportsSetsockopt, seconds: float) -> None:
    """Close newly accepted connections whose data stays unacknowledged for so long (RFC 5482).

    Their clients vanished without a FIN.
    """
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(round(seconds * 1000), 2**31 - 1))


def listen_error(address: BindableAddress, config_key: str, error: OSError) -> StartupError:
    """Return the error for an address that cannot be bound, or listened on."""
    denied = "not allowed to use that port"
    if not isinstance(address, TcpAddress):
        denied = "not allowed to create a file there"
    reason = {
        errno.EADDRINUSE: "the address is in use by another process",
        errno.EACCES: denied,
        errno.EADDRNOTAVAIL: "this machine does not have that address",
    }.get(error.errno or 0, error.strerror or str(error))
    return StartupError(f"cannot listen on {address} ({config_key}): {reason}")
