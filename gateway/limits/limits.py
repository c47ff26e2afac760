"""All limits that depend on who asks: the address, the user, the client."""

import hashlib
import secrets
from asyncio import BaseTransport
from collections.abc import Callable

import msgspec

from gateway.auth.grant import NOBODY, Grant
from gateway.broker.board import Board
from gateway.config import model
from gateway.limits.addresses import Proxies
from gateway.limits.hold import FREE, Hold
from gateway.limits.peers import AddressFull, Peer, Peers
from gateway.limits.users import Users, user_name
from gateway.metrics import Metrics

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

    def __init__(self, server: model.Server, limits: model.Limits, board: Board, metrics: Metrics) -> None:
        self._metrics = metrics
        self.proxies = Proxies(server.trusted_proxies)
        self.peers = Peers(
            limits.connections_per_address, limits.connect_rate_per_address, self.proxies.trusts
        )
        self.users = Users(board, limits.connections_per_user)
        self.clients: dict[str, Hold] = {}
        """The stream of each client that said who it is."""
        self.on_replaced: Callable[[Hold], None] = lambda hold: None
        """Called when a client's stream opened, for other nodes to end an older one."""

    def caller(self, transport: BaseTransport) -> Caller:
        """Return who is at the other end of a connection; the kernel is asked."""
        name = transport.get_extra_info("peername")
        address = name[0] if isinstance(name, tuple) else None
        return Caller(address, self.peers.of(address))

    def behind(self, caller: Caller, forwarded: str | None) -> Caller:
        """Return whose request it is: the caller's own, or of somebody behind it if it is a trusted proxy."""
        if forwarded is None:
            return caller
        address = self.proxies.client(caller.address, forwarded)
        return caller if address == caller.address else Caller(address, self.peers.of(address))

    def cut(self) -> None:
        """Count a connection that was cut: its address has far more than it may."""
        self._metrics.refused.labels(AddressFull.code).inc()

    def hold(self, peer: Peer | None, grant: Grant, client: str | None) -> Hold:
        """Return what a new stream has of the limits. Raises AddressFull or UserFull."""
        if peer is None and grant is NOBODY and client is None:
            return FREE
        named = None if client is None else _named(peer, grant, client)
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

    def replace(self, hold: Hold) -> None:
        """End the older stream of a hold's client, here and elsewhere."""
        assert hold.client is not None
        older = self.clients.get(hold.client)
        self.clients[hold.client] = hold
        if older is not None and older.stream is not None:
            older.release()
            older.stream.end("replaced")
        self.on_replaced(hold)

    def replaced_elsewhere(self, client: str, connection: str) -> None:
        """End the stream of a client that has a newer one on another node."""
        older = self.clients.get(client)
        if older is not None and older.stream is not None and older.stream.id != connection:
            older.release()
            older.stream.end("replaced")

    def release(self, hold: Hold) -> None:
        """Count a stream out; `Hold.release` calls it once."""
        self.peers.leave(hold.peer)
        if hold.user is not None:
            self.users.leave(hold.user, hold.member)
        if hold.client is not None and self.clients.get(hold.client) is hold:
            del self.clients[hold.client]

    def _replaced_peer(self, client: str | None) -> Peer | None:
        older = None if client is None else self.clients.get(client)
        return None if older is None else older.peer


def _named(peer: Peer | None, grant: Grant, client: str) -> str:
    """Return a name that only the same user, or an unknown one at the same address, can say again."""
    if grant.subject is not None:
        scope = f"user\0{grant.issuer or ''}\0{grant.subject}"
    else:
        scope = f"address\0{'' if peer is None else peer.unit}"
    text = f"{scope}\0{client}"
    return "client:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
