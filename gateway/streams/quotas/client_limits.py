"""Limits per client: per address, per user, and one stream for each client id (``client=``).

`ClientLimits` counts for one node and gives each stream a `StreamQuota`, which it releases at its end.
"""

import hashlib
import secrets
import time
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from gateway.auth.grant import ANONYMOUS, Grant
from gateway.broker.shared_store import SharedStore
from gateway.config.model import config as model
from gateway.core.bounded_dict import BoundedDict
from gateway.core.clock import unix_ms
from gateway.observability.eager import enter_task
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.quotas.address_quotas import AddressLimitReached, AddressQuotas, AddressUsage
from gateway.streams.quotas.client_address import TrustedProxies, address_key
from gateway.streams.quotas.user_quotas import UserQuotas, user_key

MAX_RECENT_CLIENTS = 20_000
"""Client ids whose last stream ended lately that are remembered."""

RECENT_CLIENT_SECONDS = 300.0
"""How long after its last stream a client counts as recently served."""

MAX_ANNOUNCED_CLIENTS = 20_000
"""Client ids whose newest stream on any node is remembered."""

MAX_CLIENT_CHARS = 128
"""Longest ``client=``, in characters."""

StreamOrder = tuple[int, int, int]
"""Orders the streams of a client on all nodes: the id of the announcement, and the position in it."""


class Caller(msgspec.Struct, frozen=True):
    """The peer of a connection, or the client behind a trusted proxy."""

    address: str | None
    """None where there is none, as on a Unix socket."""
    address_usage: AddressUsage | None
    """Under which limits count it; None: not at all."""


UNKNOWN_CALLER = Caller(None, None)


class ReplaceableStream(Protocol):
    """What a quota needs of its stream."""

    id: str

    def close_replaced(self) -> None:
        """Close at once: its client has a newer stream."""


class StreamQuota(msgspec.Struct, eq=False):
    """What a stream occupies of the limits. Acquired by `ClientLimits.acquire`, freed by `release`."""

    address_usage: AddressUsage | None
    grant: Grant
    user_key: str | None
    """Under which its user is counted; None: not at all."""
    slot_member: str
    """Its own name among the streams of its user."""
    client_id: str | None
    """Identifies its client among all others; None: the client sent no ``client=``."""
    limits: "ClientLimits | None"
    """None: it occupies nothing, or was released."""
    stream: ReplaceableStream | None = None
    order: StreamOrder | None = None
    """Its place among the streams of its client on all nodes; None: only this node knows it."""

    @property
    def is_replacing(self) -> bool:
        """Whether this node has an older stream of the same client, which ends when this one opens."""
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
            # Before the client knows that the stream is open: so the log has the client's own order.
            self.order = await self.limits.announce(self.client_id, connection)

    def activate(self, stream: ReplaceableStream) -> None:
        """Close an older stream of the same client, now that this one is open."""
        if self.limits is not None and self.client_id is not None:
            self.stream = stream
            self.limits.close_older_stream(self)

    def release(self) -> None:
        """Free what the stream occupied; harmless when repeated."""
        limits, self.limits = self.limits, None
        if limits is not None:
            limits.release(self)


class SharedAddressQuota(StreamQuota, eq=False):
    """Shared by the streams of an address that occupy nothing else; each of them releases it once."""

    def release(self) -> None:
        """Free the place of one stream."""
        if self.limits is not None:
            self.limits.addresses.release(self.address_usage)


UNLIMITED = StreamQuota(None, ANONYMOUS, None, "", None, None)
"""The quota of streams that no limit counts."""


class ClientLimits:
    """Applies ``limits`` and ``server.trusted_proxies`` to clients. ``stream_seconds``: see `reconfigure`."""

    def __init__(
        self,
        server: model.ServerConfig,
        limits: model.LimitsConfig,
        shared_store: SharedStore,
        metrics: Metrics,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
        *,
        stream_seconds: float = 3600.0,
    ) -> None:
        self._stream_seconds = stream_seconds
        self._metrics = metrics
        self.proxies = TrustedProxies(server.trusted_proxies)
        self.addresses = AddressQuotas(
            limits.connections_per_address, limits.connect_rate_per_address, self.proxies.is_trusted
        )
        self.users = UserQuotas(shared_store, limits.connections_per_user, background)
        self.quotas_by_client: dict[str, StreamQuota] = {}
        """The stream of each client id."""
        # When the last stream of a client here ended.
        self._recently_served: BoundedDict[str, float] = BoundedDict(MAX_RECENT_CLIENTS)
        self._newest_stream: BoundedDict[str, StreamOrder] = BoundedDict(MAX_ANNOUNCED_CLIENTS)
        self.announce: Callable[[str, str], Awaitable[StreamOrder | None]] = _announce_nowhere
        """Announces a client's new stream to all nodes; returns its order, None if the log is unavailable."""

    def reconfigure(
        self, server: model.ServerConfig, limits: model.LimitsConfig, stream_seconds: float
    ) -> None:
        """Apply other limits to streams that open from now on. Needs a running loop.

        ``stream_seconds`` is the maximum age of a stream.
        """
        self._stream_seconds = stream_seconds
        self.proxies.reconfigure(server.trusted_proxies)
        self.addresses.reconfigure(limits.connections_per_address, limits.connect_rate_per_address)
        self.users.limit = limits.connections_per_user
        self.users.start()

    def caller(self, transport: BaseTransport) -> Caller:
        """Return the peer of a connection."""
        name = transport.get_extra_info("peername")
        address = name[0] if isinstance(name, tuple) else None
        return Caller(address, self.addresses.usage_of(address))

    def forwarded_caller(self, caller: Caller, forwarded: str) -> Caller:
        """Return the client of a request: the caller, or the one behind it if it is a trusted proxy."""
        address = self.proxies.client_address(caller.address, forwarded)
        return caller if address == caller.address else Caller(address, self.addresses.usage_of(address))

    def count_rejected_connection(self) -> None:
        """Count a connection that was cut because its address has far too many."""
        self._metrics.refused.labels(AddressLimitReached.code).inc()

    def acquire(self, caller: Caller, grant: Grant, client: str | None) -> StreamQuota:
        """Return the quota of a new stream. Raises AddressLimitReached or UserLimitReached."""
        usage = caller.address_usage
        if grant.is_anonymous and client is None:
            # One object for all such streams of an address, which are most of a herd; bench row: storm.
            if usage is None:
                return UNLIMITED
            self.addresses.acquire(usage)
            if usage.shared_quota is None:
                usage.shared_quota = SharedAddressQuota(usage, ANONYMOUS, None, "", None, self)
            shared: StreamQuota = usage.shared_quota
            return shared
        client_id = None if client is None else _client_id(caller, grant, client)
        user = None
        if grant.subject is not None and self.users.limit is not None:
            user = user_key(grant.subject, grant.issuer)
        member = client_id or ("" if user is None else secrets.token_hex(8))
        older = None if client_id is None else self.quotas_by_client.get(client_id)
        self.addresses.acquire(usage, is_replacing=older is not None and older.address_usage is usage)
        if user is not None:
            try:
                self.users.acquire(user, member)
            except BaseException:
                self.addresses.release(usage)
                raise
        return StreamQuota(usage, grant, user, member, client_id, self)

    def was_recently_served(self, quota: StreamQuota) -> bool:
        """Tell whether the client of a stream that is about to open had one moments ago, on any node.

        Of a stream on another node only the announcement is known, not the end: its start counts.
        """
        client = quota.client_id
        if client is None:
            return False
        if client in self.quotas_by_client:
            return True
        ended = self._recently_served.get(client)
        if ended is not None and time.monotonic() - ended < RECENT_CLIENT_SECONDS:
            return True
        newest = self._newest_stream.get(client)
        max_age_ms = 1000 * (self._stream_seconds + RECENT_CLIENT_SECONDS)
        return newest is not None and unix_ms() - newest[0] < max_age_ms

    def close_older_stream(self, quota: StreamQuota) -> None:
        """Keep only the newest of a client's streams, after one has opened here."""
        assert quota.client_id is not None
        newest = self._newest_stream.get(quota.client_id)
        if newest is not None and quota.order is not None and quota.order < newest:
            _close_replaced(quota)  # a newer one was announced while this one opened
            return
        older = self.quotas_by_client.get(quota.client_id)
        self.quotas_by_client[quota.client_id] = quota
        if older is not None:
            _close_replaced(older)

    def on_announced(self, client: str, connection: str, order: StreamOrder) -> None:
        """Handle the announcement of a client's new stream, on this node or another."""
        self._newest_stream.put(client, order)
        quota = self.quotas_by_client.get(client)
        if quota is None or quota.stream is None or quota.stream.id == connection:
            return
        if quota.order is None or quota.order < order:  # without an order, the later one is the newer one
            _close_replaced(quota)

    def release(self, quota: StreamQuota) -> None:
        """Free what a stream occupied; `StreamQuota.release` calls it once."""
        self.addresses.release(quota.address_usage)
        if quota.user_key is not None:
            self.users.release(quota.user_key, quota.slot_member)
        if quota.client_id is None:
            return
        if quota.stream is not None:
            self._recently_served.put(quota.client_id, time.monotonic())
        if self.quotas_by_client.get(quota.client_id) is quota:
            del self.quotas_by_client[quota.client_id]


async def _announce_nowhere(client: str, connection: str) -> None:
    """Do nothing: there are no other nodes."""


def _close_replaced(quota: StreamQuota) -> None:
    """Release and close a stream whose client has a newer one."""
    quota.release()
    if quota.stream is not None:
        quota.stream.close_replaced()


def _client_id(caller: Caller, grant: Grant, client: str) -> str:
    """Return an id that only the same user, or an anonymous client at the same address, can get again."""
    if grant.subject is not None:
        scope = f"user\0{grant.issuer or ''}\0{grant.subject}"
    else:
        scope = f"address\0{'' if caller.address is None else address_key(caller.address)}"
    text = f"{scope}\0{client}"
    return "client:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
