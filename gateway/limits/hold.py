"""What a stream has of the limits, from its request until its connection is gone."""

from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.auth.grant import NOBODY, Grant
from gateway.limits.peers import Peer

if TYPE_CHECKING:
    from gateway.limits.limits import Limits


class Replaceable(Protocol):
    """What a hold knows of its stream."""

    id: str

    def end(self, reason: str) -> None:
        """Close with a reason."""


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
    limits: "Limits | None"
    """None: it counts for nobody."""
    stream: Replaceable | None = None

    @property
    def replaces(self) -> bool:
        """Whether an older stream of the same client is here, which ends when this one opens."""
        return self.limits is not None and self.client is not None and self.client in self.limits.clients

    @property
    def must_confirm(self) -> bool:
        """Whether `confirm` has to ask other nodes."""
        return self.limits is not None and self.user is not None and self.limits.users.must_ask

    async def confirm(self) -> None:
        """Ask for the user's seat. Raises UserFull. Cancelling is safe."""
        if self.limits is not None and self.user is not None:
            await self.limits.users.confirm(self.user, self.member)

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


FREE = Hold(None, NOBODY, None, "", None, None)
"""Of streams that count for nobody."""
