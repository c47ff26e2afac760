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
from gateway.auth.jwt import invalid_token
from gateway.auth.revocation import RecentRevocations
from gateway.broker.shared_store import QuotaSlot, SharedStore
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import TooManyRequests, Unavailable
from gateway.observability.eager import enter_task

TICKET_BYTES = 24
"""Random bytes of a ticket: 192 bits."""

MAX_TICKETS_PER_SUBJECT = 100
"""Tickets of one subject (or one address, where tokens name nobody) that are good at the same time."""

MAX_CACHED_TICKETS = 20_000
"""Tickets that are remembered here, so that a reconnect asks nobody."""

MAX_CACHED_BYTES = 32 * 1024 * 1024
"""Bytes of what they open: one may name many channels."""


class Ticket(NamedTuple):
    """What the client gets."""

    value: str
    expires: float
    """Unix seconds."""


class _StoredTicket(msgspec.Struct, frozen=True):
    grant: Grant
    expires: float
    generation: str | None


class TicketStore:
    """Gives tickets, and honours them."""

    def __init__(
        self,
        shared_store: SharedStore,
        lifetime_seconds: float,
        revocations: RecentRevocations,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._shared_store = shared_store
        self._lifetime_seconds = lifetime_seconds
        self._revocations = revocations
        self._clock = clock
        self._cache: BoundedDict[str, _StoredTicket] = BoundedDict(MAX_CACHED_TICKETS, MAX_CACHED_BYTES)
        self._release_tasks: set[asyncio.Task[None]] = set()

    async def issue(self, grant: Grant, channels: Iterable[str], client_key: str | None) -> Ticket:
        """Return a ticket for channels that a grant opens; ``whose`` is the address that asks.

        Raises TooManyRequests or Unavailable. Cancelling is safe.
        """
        text, now = secrets.token_urlsafe(TICKET_BYTES), self._clock()
        expires = now + self._lifetime_seconds
        if grant.expires is not None:
            expires = min(expires, grant.expires + grant.leeway)
        place, holder = _store_key("ticket", text), client_key if grant.subject is None else grant.subject
        seconds = max(expires - now, 0.001)
        opened = msgspec.structs.replace(grant, claims=None, opened=frozenset(channels))
        stored = _StoredTicket(opened, expires, await self._current_generation(grant.subject))
        if holder is None:
            await self._shared_store.put(place, msgspec.json.encode(stored), seconds)
            return Ticket(text, expires)
        seat = QuotaSlot(_store_key("tickets", holder), place, MAX_TICKETS_PER_SUBJECT)
        taking = asyncio.ensure_future(self._shared_store.acquire_slots([seat], seconds))
        try:
            # Shielded: if this is cancelled, the board may still take the seat; it is given back after that.
            if not all(await asyncio.shield(taking)):
                raise TooManyRequests(f"{MAX_TICKETS_PER_SUBJECT} tickets are good already", retry_after=5)
            await self._shared_store.put(place, msgspec.json.encode(stored), seconds)
        except BaseException:
            returning = asyncio.create_task(
                self._release_slot(taking, seat), name="give back a ticket's seat"
            )
            self._release_tasks.add(returning)
            returning.add_done_callback(self._release_tasks.discard)
            raise
        return Ticket(text, expires)

    async def _release_slot(self, taking: "asyncio.Future[list[bool]]", seat: QuotaSlot) -> None:
        """Free the seat of a ticket that nobody got; where the log is away it expires with the ticket."""
        await asyncio.wait([taking])
        with suppress(Unavailable):
            await self._shared_store.release_slots([seat])

    async def resolve(self, ticket: str) -> Grant:
        """Return what a ticket opens. Waits only for a ticket that is not cached here.

        Raises Unauthorized or Unavailable. Cancelling is safe.
        """
        place, since = _store_key("ticket", ticket), self._revocations.count
        cached = self._cache.get(place)
        if cached is not None:
            return self._unexpired_grant(cached)
        await enter_task()
        value = await self._shared_store.get(place)
        if value is None:
            raise invalid_token("the ticket has expired, or was never given")
        stored = msgspec.json.decode(value, type=_StoredTicket)
        current = await self._current_generation(stored.grant.subject)
        # None: none was ended for so long that all which are left are younger.
        if current is not None and current != stored.generation:
            raise invalid_token("the ticket was ended")
        if since == self._revocations.count:
            self._cache.put(place, stored)
        return self._unexpired_grant(stored)

    async def revoke(self, subject: str) -> None:
        """End all tickets that a subject has. Raises Unavailable. All nodes must be told to `forget`."""
        await self._shared_store.put(
            _store_key("generation", subject), secrets.token_hex(8).encode(), self._lifetime_seconds + 1
        )

    def clear_cache(self) -> None:
        """Ask the board again about all tickets."""
        self._cache.clear()

    async def _current_generation(self, subject: str | None) -> str | None:
        found = None if subject is None else await self._shared_store.get(_store_key("generation", subject))
        return None if found is None else found.decode()

    def _unexpired_grant(self, stored: _StoredTicket) -> Grant:
        if self._clock() >= stored.expires:
            raise invalid_token("the ticket has expired")
        return stored.grant


def _store_key(kind: str, text: str) -> str:
    return f"{kind}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
