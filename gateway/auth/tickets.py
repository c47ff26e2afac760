"""Tickets, for clients that cannot send headers: a token buys a value that opens some channels for a while.

The board holds them under their hash, so any node honours a ticket and whoever reads the storage has none.
Ending a subject's streams (``DELETE /streams``) ends the tickets that were given until then.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from gateway.auth.grant import Grant
from gateway.auth.tokens import invalid
from gateway.broker.board import Board

TICKET_BYTES = 24
"""Random bytes of a ticket: 192 bits."""

REMEMBERED = 20_000
"""Tickets that are remembered here, so that a reconnect asks nobody."""


class Ticket(NamedTuple):
    """What the client gets."""

    text: str
    expires: float
    """Unix seconds."""


class _Stored(msgspec.Struct, frozen=True):
    grant: Grant
    given: float
    expires: float


class Tickets:
    """Gives tickets, and honours them."""

    def __init__(self, board: Board, lifetime: float, now: Callable[[], float] = time.time) -> None:
        self._board = board
        self._lifetime = lifetime
        self._now = now
        self._known: OrderedDict[str, _Stored] = OrderedDict()

    async def give(self, grant: Grant, channels: Iterable[str]) -> Ticket:
        """Return a ticket for channels that a grant opens. Raises Unavailable. Cancelling is safe."""
        text, now = secrets.token_urlsafe(TICKET_BYTES), self._now()
        expires = now + self._lifetime
        if grant.expires is not None:
            expires = min(expires, grant.expires + grant.leeway)
        opened = msgspec.structs.replace(grant, claims=None, opened=frozenset(channels))
        stored = _Stored(opened, now, expires)
        await self._board.put(_place(text), msgspec.json.encode(stored), max(expires - now, 0.001))
        self._remember(_place(text), stored)
        return Ticket(text, expires)

    def at_once(self, text: str) -> Grant | None:
        """Return what a ticket opens, or None where `look` must ask the log. Raises Unauthorized."""
        stored = self._known.get(_place(text))
        return None if stored is None else self._checked(stored)

    async def look(self, text: str) -> Grant:
        """Return what a ticket opens. Raises Unauthorized or Unavailable. Cancelling is safe."""
        place = _place(text)
        value = await self._board.get(place)
        if value is None:
            raise invalid("the ticket has expired, or was never given")
        stored = msgspec.json.decode(value, type=_Stored)
        subject = stored.grant.subject
        ended = None if subject is None else await self._board.get(_ended(subject))
        if ended is not None and float(ended) >= stored.given:
            raise invalid("the ticket was ended")
        self._remember(place, stored)
        return self._checked(stored)

    async def end(self, subject: str) -> None:
        """End all tickets that a subject has. Raises Unavailable. Other nodes must be told to `forget`."""
        await self._board.put(_ended(subject), str(self._now()).encode(), self._lifetime + 1)
        self.forget(subject)

    def forget(self, subject: str) -> None:
        """Ask the log again about all tickets of a subject."""
        for place in [place for place, each in self._known.items() if each.grant.subject == subject]:
            del self._known[place]

    def _checked(self, stored: _Stored) -> Grant:
        if self._now() >= stored.expires:
            raise invalid("the ticket has expired")
        return stored.grant

    def _remember(self, place: str, stored: _Stored) -> None:
        self._known[place] = stored
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _place(text: str) -> str:
    return "ticket:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _ended(subject: str) -> str:
    return "ended:" + hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()
