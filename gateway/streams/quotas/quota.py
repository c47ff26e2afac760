"""What a stream has of the limits, from its request until its connection is gone."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from gateway.auth.grant import NOBODY, Grant
from gateway.streams.quotas.peers import Peer, Peers
from gateway.streams.quotas.users import Users

Order = tuple[int, int, int]
"""Of a notice in the log, and the place in it."""


class Replaceable(Protocol):
    """What a hold knows of its stream."""

    id: str

    def give_way(self) -> None:
        """Close at once: its client has another one."""


class Ledger(Protocol):
    """Where streams are counted: `gateway.streams.quotas.limits.Limits`."""

    peers: Peers
    users: Users
    announce: Callable[[str, str], Awaitable[Order | None]]

    @property
    def clients(self) -> Mapping[str, "Hold"]:
        """Return the stream of each client that has a name."""

    def replace(self, hold: "Hold") -> None:
        """Let the newest of a client's streams live."""

    def release(self, hold: "Hold") -> None:
        """Count a stream out."""


class Hold(msgspec.Struct, eq=False):
    """Made by `Limits.hold`; `release` gives all of it back."""

    peer: Peer | None
    grant: Grant
    user: str | None
    """Under which its user is counted; None: not at all."""
    member: str
    """Its own name there."""
    client: str | None
    """What tells its client from all others, if that said who it is."""
    limits: Ledger | None
    """None: it counts for nobody."""
    stream: Replaceable | None = None
    order: Order | None = None
    """Its place among the streams of its client, on all nodes; None where only this one knows."""

    @property
    def replaces(self) -> bool:
        """Whether an older stream of the same client is here, which ends when this one opens."""
        return self.limits is not None and self.client is not None and self.client in self.limits.clients

    @property
    def must_confirm(self) -> bool:
        """Whether `confirm` has to ask other nodes."""
        if self.limits is None or not self.limits.users.must_ask:
            return False
        return self.user is not None or self.client is not None

    async def confirm(self, connection: str) -> None:
        """Ask for the user's seat, and tell of a client's new stream. Raises Overload. Cancelling is safe."""
        if self.limits is not None and self.user is not None:
            await self.limits.users.confirm(self.user, self.member)
        if self.limits is not None and self.client is not None:
            # Before the client knows that it is open: so the log's order is that in which it opened them.
            self.order = await self.limits.announce(self.client, connection)

    def begins(self, stream: Replaceable) -> None:
        """Its stream is open: an older one of the same client ends."""
        if self.limits is not None and self.client is not None:
            self.stream = stream
            self.limits.replace(self)

    def release(self) -> None:
        """Give everything back; harmless when repeated."""
        limits, self.limits = self.limits, None
        if limits is not None:
            limits.release(self)


class AddressHold(Hold, eq=False):
    """Shared by all streams of an address that count for nothing else; each of them releases it once."""

    def release(self) -> None:
        """Count one stream out."""
        if self.limits is not None:
            self.limits.peers.leave(self.peer)


FREE = Hold(None, NOBODY, None, "", None, None)
"""Of streams that count for nobody."""
