"""All limits that depend on who asks: the address, the user, the client."""

import hashlib
import secrets
import time
from asyncio import BaseTransport
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from gateway.auth.grant import NOBODY, Grant
from gateway.broker.shared_store import Board
from gateway.config.model import config as model
from gateway.core.clock import unix_ms
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Metrics
from gateway.streams.quotas.addresses import Proxies, unit
from gateway.streams.quotas.peers import AddressFull, Peer, Peers
from gateway.streams.quotas.quota import FREE, AddressHold, Hold, Order
from gateway.streams.quotas.users import Users, user_name

SERVED = 20_000
"""Clients that said who they are, and had a stream lately, that are remembered."""

SERVED_SECONDS = 300.0
"""How long after its last stream a client is known to have been served."""

ANNOUNCED = 20_000
"""Clients whose newest stream is remembered, for those that are about to open."""

MAX_CLIENT = 128
"""Longest ``client=``, in characters."""


class Caller(msgspec.Struct, frozen=True):
    """Who is at the other end of a connection."""

    address: str | None
    """None where there is none, as on a Unix socket."""
    peer: Peer | None
    """Under which it is counted; None: not at all."""


UNKNOWN = Caller(None, None)


class Limits:
    """What ``limits`` and ``server.trusted_proxies`` say of clients."""

    def __init__(
        self,
        server: model.Server,
        limits: model.Limits,
        board: Board,
        metrics: Metrics,
        background: Background = UNCOUNTED,
        *,
        stream_seconds: float = 3600.0,
    ) -> None:
        """Make them. ``stream_seconds`` is the maximum age of a stream."""
        self._stream_seconds = stream_seconds
        self._metrics = metrics
        self.proxies = Proxies(server.trusted_proxies)
        self.peers = Peers(
            limits.connections_per_address, limits.connect_rate_per_address, self.proxies.trusts
        )
        self.users = Users(board, limits.connections_per_user, background)
        self.clients: dict[str, Hold] = {}
        """The stream of each client that said who it is."""
        self._served: OrderedDict[str, float] = OrderedDict()  # when its last stream here ended
        self._latest: OrderedDict[str, Order] = OrderedDict()
        self.announce: Callable[[str, str], Awaitable[Order | None]] = _alone
        """Tells all nodes of a client's new stream, and returns its place; None where that cannot be told."""

    def reconfigure(self, server: model.Server, limits: model.Limits, stream_seconds: float) -> None:
        """Take other bounds, for streams that open from now on. Needs a running loop."""
        self._stream_seconds = stream_seconds
        self.proxies.reconfigure(server.trusted_proxies)
        self.peers.reconfigure(limits.connections_per_address, limits.connect_rate_per_address)
        self.users.limit = limits.connections_per_user
        self.users.start()

    def caller(self, transport: BaseTransport) -> Caller:
        """Return who is at the other end of a connection; the kernel is asked."""
        name = transport.get_extra_info("peername")
        address = name[0] if isinstance(name, tuple) else None
        return Caller(address, self.peers.of(address))

    def behind(self, caller: Caller, forwarded: str) -> Caller:
        """Return whose request it is: the caller's own, or of somebody behind it if it is a trusted proxy."""
        address = self.proxies.client(caller.address, forwarded)
        return caller if address == caller.address else Caller(address, self.peers.of(address))

    def cut(self) -> None:
        """Count a connection that was cut: its address has far more than it may."""
        self._metrics.refused.labels(AddressFull.code).inc()

    def hold(self, caller: Caller, grant: Grant, client: str | None) -> Hold:
        """Return what a new stream has of the limits. Raises AddressFull or UserFull."""
        peer = caller.peer
        if grant.is_anybody and client is None:
            # Most streams of a herd: what they have of the limits is one and the same for an address.
            if peer is None:
                return FREE
            self.peers.enter(peer)
            if peer.hold is None:
                peer.hold = AddressHold(peer, NOBODY, None, "", None, self)
            return cast(AddressHold, peer.hold)
        named = None if client is None else _named(caller, grant, client)
        user = None
        if grant.subject is not None and self.users.limit is not None:
            user = user_name(grant.subject, grant.issuer)
        member = named or ("" if user is None else secrets.token_hex(8))
        hold = Hold(peer, grant, user, member, named, self)
        self.peers.enter(peer, replaces=self._replaced_peer(named) is peer)
        if user is not None:
            try:
                self.users.enter(user, hold.member)
            except BaseException:
                self.peers.leave(peer)
                raise
        return hold

    def was_served(self, hold: Hold) -> bool:
        """Tell whether the client of a stream that is about to begin had one moments ago, on any node.

        Another node's stream is known since it was announced, and not when it ended: its start counts.
        """
        client = hold.client
        if client is None:
            return False
        if client in self.clients:
            return True
        ended = self._served.get(client)
        if ended is not None and time.monotonic() - ended < SERVED_SECONDS:
            return True
        latest = self._latest.get(client)
        return latest is not None and unix_ms() - latest[0] < 1000 * (self._stream_seconds + SERVED_SECONDS)

    def replace(self, hold: Hold) -> None:
        """Let the newest of a client's streams live, of which one begins here."""
        assert hold.client is not None
        latest = self._latest.get(hold.client)
        if latest is not None and hold.order is not None and hold.order < latest:
            _give_way(hold)  # another one was told of while this one opened
            return
        older = self.clients.get(hold.client)
        self.clients[hold.client] = hold
        if older is not None:
            _give_way(older)

    def announced(self, client: str, connection: str, order: Order) -> None:
        """Take what a node has told: a client has a new stream, maybe here."""
        self._latest[client] = order
        if len(self._latest) > ANNOUNCED:
            self._latest.popitem(last=False)
        hold = self.clients.get(client)
        if hold is None or hold.stream is None or hold.stream.id == connection:
            return
        if _comes_before(hold.order, order):
            _give_way(hold)

    def release(self, hold: Hold) -> None:
        """Count a stream out; `Hold.release` calls it once."""
        self.peers.leave(hold.peer)
        if hold.user is not None:
            self.users.leave(hold.user, hold.member)
        if hold.client is not None and hold.stream is not None:
            self._served[hold.client] = time.monotonic()
            self._served.move_to_end(hold.client)
            if len(self._served) > SERVED:
                self._served.popitem(last=False)
        if hold.client is not None and self.clients.get(hold.client) is hold:
            del self.clients[hold.client]

    def _replaced_peer(self, client: str | None) -> Peer | None:
        older = None if client is None else self.clients.get(client)
        return None if older is None else older.peer


async def _alone(client: str, connection: str) -> None:
    """Tell nobody."""


def _comes_before(one: Order | None, other: Order | None) -> bool:
    """Tell whether a stream is older than one that begins now; where nobody knows, the later one is newer."""
    return one is None or other is None or one < other


def _give_way(hold: Hold) -> None:
    """Give back what a stream has, and end it: its client has a newer one."""
    hold.release()
    if hold.stream is not None:
        hold.stream.give_way()


def _named(caller: Caller, grant: Grant, client: str) -> str:
    """Return a name that only the same user, or an unknown one at the same address, can say again."""
    if grant.subject is not None:
        scope = f"user\0{grant.issuer or ''}\0{grant.subject}"
    else:
        scope = f"address\0{'' if caller.address is None else unit(caller.address)}"
    text = f"{scope}\0{client}"
    return "client:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
