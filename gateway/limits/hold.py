"""What a stream has of the limits, from its request until its connection is gone."""

from typing import TYPE_CHECKING, Protocol

from gateway.auth.grant import NOBODY, Grant
from gateway.limits.peers import Peer

if TYPE_CHECKING:
    from gateway.limits.limits import Limits


class Replaceable(Protocol):
    """What a hold knows of its stream."""

    id: str

    def end(self, reason: str) -> None:
        """Close with a reason."""


class Hold:
    """Made by `Limits.hold`; `release` gives all of it back."""

    __slots__ = ("_is_released", "_limits", "client", "grant", "member", "peer", "stream", "user")

    def __init__(
        self,
        limits: "Limits | None",
        peer: Peer | None,
        grant: Grant,
        user: str | None,
        member: str,
        client: str | None,
    ) -> None:
        self._limits = limits
        self.peer = peer
        self.grant = grant
        self.user = user
        """Under which its user is counted; None: not at all."""
        self.member = member
        self.client = client
        """What tells its client from all others, if that said who it is."""
        self.stream: Replaceable | None = None
        self._is_released = limits is None

    @property
    def replaces(self) -> bool:
        """Whether an older stream of the same client is here, which ends when this one opens."""
        return self._limits is not None and self.client is not None and self.client in self._limits.clients

    @property
    def must_confirm(self) -> bool:
        """Whether `confirm` has to ask other nodes."""
        return self._limits is not None and self.user is not None and self._limits.users.must_ask

    async def confirm(self) -> None:
        """Ask for the user's seat. Raises UserFull. Cancelling is safe."""
        if self._limits is not None and self.user is not None:
            await self._limits.users.confirm(self.user, self.member)

    def begins(self, stream: Replaceable) -> None:
        """Its stream is open: an older one of the same client ends."""
        if self._limits is not None and self.client is not None:
            self.stream = stream
            self._limits.replace(self)

    def release(self) -> None:
        """Give everything back; harmless when repeated."""
        if not self._is_released and self._limits is not None:
            self._is_released = True
            self._limits.release(self)


FREE = Hold(None, None, NOBODY, None, "", None)
"""Of streams that count for nobody."""
