"""What a stream has of the limits, from its request until its connection is gone."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from gateway.auth.grant import ANONYMOUS, Grant
from gateway.observability.eager import enter_task
from gateway.streams.quotas.address_quotas import AddressQuotas, AddressUsage
from gateway.streams.quotas.user_quotas import UserQuotas

StreamOrder = tuple[int, int, int]
"""Of a notice in the log, and the place in it."""


class ReplaceableStream(Protocol):
    """What a hold knows of its stream."""

    id: str

    def close_replaced(self) -> None:
        """Close at once: its client has another one."""


class QuotaOwner(Protocol):
    """Where streams are counted: `gateway.streams.quotas.client_limits.ClientLimits`."""

    addresses: AddressQuotas
    users: UserQuotas
    announce: Callable[[str, str], Awaitable[StreamOrder | None]]

    @property
    def quotas_by_client(self) -> Mapping[str, "StreamQuota"]:
        """Return the stream of each client that has a name."""

    def close_older_stream(self, quota: "StreamQuota") -> None:
        """Let the newest of a client's streams live."""

    def release(self, quota: "StreamQuota") -> None:
        """Count a stream out."""


class StreamQuota(msgspec.Struct, eq=False):
    """Made by `ClientLimits.acquire`; `release` gives all of it back."""

    address_usage: AddressUsage | None
    grant: Grant
    user_key: str | None
    """Under which its user is counted; None: not at all."""
    slot_member: str
    """Its own name there."""
    client_id: str | None
    """What tells its client from all others, if that said who it is."""
    limits: QuotaOwner | None
    """None: it counts for nobody."""
    stream: ReplaceableStream | None = None
    order: StreamOrder | None = None
    """Its place among the streams of its client, on all nodes; None where only this one knows."""

    @property
    def is_replacing(self) -> bool:
        """Whether an older stream of the same client is here, which ends when this one opens."""
        return (
            self.limits is not None
            and self.client_id is not None
            and self.client_id in self.limits.quotas_by_client
        )

    async def reserve(self, connection: str) -> None:
        """Reserve the user's slot in the shared store, and announce a client's new stream to other nodes.

        Waits only if nodes share a store. Raises Overloaded. Cancelling is safe.
        """
        if self.limits is None or not self.limits.users.is_shared:
            return
        if self.user_key is None and self.client_id is None:
            return
        await enter_task()
        if self.limits is not None and self.user_key is not None:
            await self.limits.users.reserve(self.user_key, self.slot_member)
        if self.limits is not None and self.client_id is not None:
            # Before the client knows that it is open: so the log's order is that in which it opened them.
            self.order = await self.limits.announce(self.client_id, connection)

    def activate(self, stream: ReplaceableStream) -> None:
        """Its stream is open: an older one of the same client ends."""
        if self.limits is not None and self.client_id is not None:
            self.stream = stream
            self.limits.close_older_stream(self)

    def release(self) -> None:
        """Give everything back; harmless when repeated."""
        limits, self.limits = self.limits, None
        if limits is not None:
            limits.release(self)


class SharedAddressQuota(StreamQuota, eq=False):
    """Shared by all streams of an address that count for nothing else; each of them releases it once."""

    def release(self) -> None:
        """Count one stream out."""
        if self.limits is not None:
            self.limits.addresses.release(self.address_usage)


UNLIMITED = StreamQuota(None, ANONYMOUS, None, "", None, None)
"""Of streams that count for nobody."""
