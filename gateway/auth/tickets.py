"""Tickets, for clients that cannot send headers: a token buys a value that opens some channels for a while.

The board holds them under their hash, so any node honours a ticket and whoever reads the storage has none.
Ending a subject's streams (``DELETE /streams``) ends the tickets that were given until then: each says of
which generation of its subject's tickets it is, and there is another one afterwards. No clocks are compared.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from gateway.auth.grant import Grant
from gateway.auth.jwt import invalid
from gateway.auth.revocation import Revocations
from gateway.broker.shared_store import Board, Seat
from gateway.core.bounded import Bounded
from gateway.core.errors import TooManyRequests, Unavailable

TICKET_BYTES = 24
"""Random bytes of a ticket: 192 bits."""

OF_ONE = 100
"""Tickets of one subject (or one address, where tokens name nobody) that are good at the same time."""

REMEMBERED = 20_000
"""Tickets that are remembered here, so that a reconnect asks nobody."""

REMEMBERED_BYTES = 32 * 1024 * 1024
"""Bytes of what they open: one may name many channels."""


class Ticket(NamedTuple):
    """What the client gets."""

    text: str
    expires: float
    """Unix seconds."""


class _Stored(msgspec.Struct, frozen=True):
    grant: Grant
    expires: float
    generation: str | None


class Tickets:
    """Gives tickets, and honours them."""

    def __init__(
        self,
        board: Board,
        lifetime: float,
        revocations: Revocations,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._board = board
        self._lifetime = lifetime
        self._revocations = revocations
        self._now = now
        self._known: Bounded[str, _Stored] = Bounded(REMEMBERED, REMEMBERED_BYTES)
        self._returning: set[asyncio.Task[None]] = set()

    async def give(self, grant: Grant, channels: Iterable[str], whose: str | None) -> Ticket:
        """Return a ticket for channels that a grant opens; ``whose`` is the address that asks.

        Raises TooManyRequests or Unavailable. Cancelling is safe.
        """
        text, now = secrets.token_urlsafe(TICKET_BYTES), self._now()
        expires = now + self._lifetime
        if grant.expires is not None:
            expires = min(expires, grant.expires + grant.leeway)
        place, holder = _hashed("ticket", text), whose if grant.subject is None else grant.subject
        seconds = max(expires - now, 0.001)
        opened = msgspec.structs.replace(grant, claims=None, opened=frozenset(channels))
        stored = _Stored(opened, expires, await self._generation(grant.subject))
        if holder is None:
            await self._board.put(place, msgspec.json.encode(stored), seconds)
            return Ticket(text, expires)
        seat = Seat(_hashed("tickets", holder), place, OF_ONE)
        taking = asyncio.ensure_future(self._board.seats([seat], seconds))
        try:
            # Shielded: if this is cancelled, the board may still take the seat; it is given back after that.
            if not all(await asyncio.shield(taking)):
                raise TooManyRequests(f"{OF_ONE} tickets are good already", retry_after=5)
            await self._board.put(place, msgspec.json.encode(stored), seconds)
        except BaseException:
            returning = asyncio.create_task(self._give_back(taking, seat), name="give back a ticket's seat")
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)
            raise
        return Ticket(text, expires)

    async def _give_back(self, taking: "asyncio.Future[list[bool]]", seat: Seat) -> None:
        """Free the seat of a ticket that nobody got; where the log is away it expires with the ticket."""
        await asyncio.wait([taking])
        with suppress(Unavailable):
            await self._board.leave([seat])

    def at_once(self, text: str) -> Grant | None:
        """Return what a ticket opens, or None where `look` must ask the board. Raises Unauthorized."""
        stored = self._known.get(_hashed("ticket", text))
        return None if stored is None else self._checked(stored)

    async def look(self, text: str) -> Grant:
        """Return what a ticket opens. Raises Unauthorized or Unavailable. Cancelling is safe."""
        place, since = _hashed("ticket", text), self._revocations.number
        value = await self._board.get(place)
        if value is None:
            raise invalid("the ticket has expired, or was never given")
        stored = msgspec.json.decode(value, type=_Stored)
        current = await self._generation(stored.grant.subject)
        # None: none was ended for so long that all which are left are younger.
        if current is not None and current != stored.generation:
            raise invalid("the ticket was ended")
        if since == self._revocations.number:
            self._known.put(place, stored)
        return self._checked(stored)

    async def end(self, subject: str) -> None:
        """End all tickets that a subject has. Raises Unavailable. All nodes must be told to `forget`."""
        await self._board.put(
            _hashed("generation", subject), secrets.token_hex(8).encode(), self._lifetime + 1
        )

    def forget(self) -> None:
        """Ask the board again about all tickets."""
        self._known.clear()

    async def _generation(self, subject: str | None) -> str | None:
        found = None if subject is None else await self._board.get(_hashed("generation", subject))
        return None if found is None else found.decode()

    def _checked(self, stored: _Stored) -> Grant:
        if self._now() >= stored.expires:
            raise invalid("the ticket has expired")
        return stored.grant


def _hashed(kind: str, text: str) -> str:
    return f"{kind}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
