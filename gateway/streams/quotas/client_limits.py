"""All limits that depend on who asks: the address, the user, the client."""

import hashlib
import secrets
import time
from asyncio import BaseTransport
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from gateway.auth.grant import ANONYMOUS, Grant
from gateway.broker.shared_store import SharedStore
from gateway.config.model import config as model
from gateway.core.clock import unix_ms
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor
from gateway.streams.quotas.address_quotas import AddressLimitReached, AddressQuotas, AddressUsage
from gateway.streams.quotas.client_address import TrustedProxies, address_key
from gateway.streams.quotas.stream_quota import UNLIMITED, SharedAddressQuota, StreamOrder, StreamQuota
from gateway.streams.quotas.user_quotas import UserQuotas, user_key

MAX_RECENT_CLIENTS = 20_000
"""Clients that said who they are, and had a stream lately, that are remembered."""

RECENT_CLIENT_SECONDS = 300.0
"""How long after its last stream a client is known to have been served."""

MAX_ANNOUNCED_CLIENTS = 20_000
"""Clients whose newest stream is remembered, for those that are about to open."""

MAX_CLIENT_CHARS = 128
"""Longest ``client=``, in characters."""


class Caller(msgspec.Struct, frozen=True):
    """Who is at the other end of a connection."""

    address: str | None
    """None where there is none, as on a Unix socket."""
    address_usage: AddressUsage | None
    """Under which it is counted; None: not at all."""


UNKNOWN_CALLER = Caller(None, None)


class ClientLimits:
    """What ``limits`` and ``server.trusted_proxies`` say of clients."""

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
        """Make them. ``stream_seconds`` is the maximum age of a stream."""
        self._stream_seconds = stream_seconds
        self._metrics = metrics
        self.proxies = TrustedProxies(server.trusted_proxies)
        self.addresses = AddressQuotas(
            limits.connections_per_address, limits.connect_rate_per_address, self.proxies.is_trusted
        )
        self.users = UserQuotas(shared_store, limits.connections_per_user, background)
        self.quotas_by_client: dict[str, StreamQuota] = {}
        """The stream of each client that said who it is."""
        self._recently_served: OrderedDict[str, float] = OrderedDict()  # when its last stream here ended
        self._newest_stream: OrderedDict[str, StreamOrder] = OrderedDict()
        self.announce: Callable[[str, str], Awaitable[StreamOrder | None]] = _announce_nowhere
        """Tells all nodes of a client's new stream, and returns its place; None where that cannot be told."""

    def apply(self, config: model.Config) -> None:
        """Take the limits of a configuration, for streams that open from now on. Needs a running loop."""
        self._stream_seconds = config.timeouts.connection
        self.proxies.apply(config)
        self.addresses.apply(config)
        self.users.limit = config.limits.connections_per_user
        self.users.start()

    def caller(self, transport: BaseTransport) -> Caller:
        """Return who is at the other end of a connection; the kernel is asked."""
        name = transport.get_extra_info("peername")
        address = name[0] if isinstance(name, tuple) else None
        return Caller(address, self.addresses.usage_of(address))

    def forwarded_caller(self, caller: Caller, forwarded: str) -> Caller:
        """Return whose request it is: the caller's own, or of somebody behind it if it is a trusted proxy."""
        address = self.proxies.client_address(caller.address, forwarded)
        return caller if address == caller.address else Caller(address, self.addresses.usage_of(address))

    def count_rejected_connection(self) -> None:
        """Count a connection that was cut: its address has far more than it may."""
        self._metrics.refused.labels(AddressLimitReached.code).inc()

    def acquire(self, caller: Caller, grant: Grant, client: str | None) -> StreamQuota:
        """Return what a new stream has of the limits. Raises AddressFull or UserFull."""
        peer = caller.address_usage
        if grant.is_anonymous and client is None:
            # Most streams of a herd: what they have of the limits is one and the same for an address.
            if peer is None:
                return UNLIMITED
            self.addresses.acquire(peer)
            if peer.shared_quota is None:
                peer.shared_quota = SharedAddressQuota(peer, ANONYMOUS, None, "", None, self)
            return cast(SharedAddressQuota, peer.shared_quota)
        named = None if client is None else _client_id(caller, grant, client)
        user = None
        if grant.subject is not None and self.users.limit is not None:
            user = user_key(grant.subject, grant.issuer)
        member = named or ("" if user is None else secrets.token_hex(8))
        hold = StreamQuota(peer, grant, user, member, named, self)
        self.addresses.acquire(peer, is_replacing=self._replaced_address(named) is peer)
        if user is not None:
            try:
                self.users.acquire(user, hold.slot_member)
            except BaseException:
                self.addresses.release(peer)
                raise
        return hold

    def was_recently_served(self, quota: StreamQuota) -> bool:
        """Tell whether the client of a stream that is about to begin had one moments ago, on any node.

        Another node's stream is known since it was announced, and not when it ended: its start counts.
        """
        client = quota.client_id
        if client is None:
            return False
        if client in self.quotas_by_client:
            return True
        ended = self._recently_served.get(client)
        if ended is not None and time.monotonic() - ended < RECENT_CLIENT_SECONDS:
            return True
        latest = self._newest_stream.get(client)
        return latest is not None and unix_ms() - latest[0] < 1000 * (
            self._stream_seconds + RECENT_CLIENT_SECONDS
        )

    def close_older_stream(self, quota: StreamQuota) -> None:
        """Let the newest of a client's streams live, of which one begins here."""
        assert quota.client_id is not None
        latest = self._newest_stream.get(quota.client_id)
        if latest is not None and quota.order is not None and quota.order < latest:
            _close_replaced(quota)  # another one was told of while this one opened
            return
        older = self.quotas_by_client.get(quota.client_id)
        self.quotas_by_client[quota.client_id] = quota
        if older is not None:
            _close_replaced(older)

    def on_announced(self, client: str, connection: str, order: StreamOrder) -> None:
        """Take what a node has told: a client has a new stream, maybe here."""
        self._newest_stream[client] = order
        if len(self._newest_stream) > MAX_ANNOUNCED_CLIENTS:
            self._newest_stream.popitem(last=False)
        hold = self.quotas_by_client.get(client)
        if hold is None or hold.stream is None or hold.stream.id == connection:
            return
        if _is_older(hold.order, order):
            _close_replaced(hold)

    def release(self, quota: StreamQuota) -> None:
        """Count a stream out; `StreamQuota.release` calls it once."""
        self.addresses.release(quota.address_usage)
        if quota.user_key is not None:
            self.users.release(quota.user_key, quota.slot_member)
        if quota.client_id is not None and quota.stream is not None:
            self._recently_served[quota.client_id] = time.monotonic()
            self._recently_served.move_to_end(quota.client_id)
            if len(self._recently_served) > MAX_RECENT_CLIENTS:
                self._recently_served.popitem(last=False)
        if quota.client_id is not None and self.quotas_by_client.get(quota.client_id) is quota:
            del self.quotas_by_client[quota.client_id]

    def _replaced_address(self, client: str | None) -> AddressUsage | None:
        older = None if client is None else self.quotas_by_client.get(client)
        return None if older is None else older.address_usage


async def _announce_nowhere(client: str, connection: str) -> None:
    """Tell nobody."""


def _is_older(one: StreamOrder | None, other: StreamOrder | None) -> bool:
    """Tell whether a stream is older than one that begins now; where nobody knows, the later one is newer."""
    return one is None or other is None or one < other


def _close_replaced(quota: StreamQuota) -> None:
    """Give back what a stream has, and end it: its client has a newer one."""
    quota.release()
    if quota.stream is not None:
        quota.stream.close_replaced()


def _client_id(caller: Caller, grant: Grant, client: str) -> str:
    """Return a name that only the same user, or an unknown one at the same address, can say again."""
    if grant.subject is not None:
        scope = f"user\0{grant.issuer or ''}\0{grant.subject}"
    else:
        scope = f"address\0{'' if caller.address is None else address_key(caller.address)}"
    text = f"{scope}\0{client}"
    return "client:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
