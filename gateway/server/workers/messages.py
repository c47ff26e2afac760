"""The messages between the parent and its workers.

Each message on the pipe from the parent is its length in 4 bytes, then MessagePack: first a `WorkerInit`,
then `Command`s. A worker answers on its standard output with one line of JSON for each reload command.
"""

from typing import Literal

import msgspec
from msgspec import Struct

from gateway.config.model.value_types import TcpAddress, UnixSocketPath
from gateway.http.sockets import BindableAddress, InheritedSocket

LENGTH_BYTES = 4
"""Bytes in front of a message that hold its length."""

LISTENING = b"listening\n"
"""What a worker writes once it accepts connections."""

CommandName = Literal["drain", "drain_now", "force_stop", "prepare", "commit", "discard"]


class SharedAddress(Struct, frozen=True):
    """An address that all workers listen on: host and port, or a Unix socket and its descriptor."""

    name: str
    number: int
    is_unix: bool

    @classmethod
    def of(cls, address: BindableAddress) -> "SharedAddress":
        """Return an address of `ReservedAddresses`."""
        assert not isinstance(address, UnixSocketPath), "the parent has bound it"
        name, number = address
        return cls(name, number, isinstance(address, InheritedSocket))

    def resolve(self) -> BindableAddress:
        """Return the address for a `Listener`."""
        return (InheritedSocket if self.is_unix else TcpAddress)(self.name, self.number)


class WorkerInit(Struct, frozen=True):
    """What a worker is started with."""

    number: int
    config: bytes
    """A configuration, see `Config.serialize`."""
    addresses: tuple["SharedAddress", ...]
    admin_path: str
    """The socket on which the parent reaches the admin port."""


class Command(Struct, frozen=True):
    """``prepare``, ``commit`` and ``discard`` are the steps of a reload, and are answered by a `Reply`."""

    name: CommandName
    number: int = 0
    config: bytes = b""
    """Of ``prepare``."""


class Reply(Struct, frozen=True):
    """The answer to a reload command."""

    number: int
    """That of the command."""
    error: str | None = None
    ended: int = 0
    """Streams that had to end."""


def frame(message: Struct) -> bytes:
    """Return a message as it is written to the pipe."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data
