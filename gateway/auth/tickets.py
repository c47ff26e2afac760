"""Tickets for clients that cannot send headers: issued for a token, they open some channels for a while.

The shared store holds tickets under their hash, so that every node accepts them and the storage reveals none.
Revoking a subject (``DELETE /streams``) revokes the tickets that were issued until then: each ticket carries
the generation of its subject's tickets, which the revocation replaces. No clocks are compared.
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
"""Valid tickets of one subject (or one address, if tokens have no subject) at the same time."""

MAX_CACHED_TICKETS = 20_000
"""Tickets that a node caches, so that a reconnect needs no request to the shared store."""

MAX_CACHED_BYTES = 32 * 1024 * 1024
"""Bytes of the cached tickets: one may name many channels."""


class Ticket(NamedTuple):
    """A ticket as the client receives it."""

    value: str
    expires: float
    """Unix seconds."""


class _StoredTicket(msgspec.Struct, frozen=True):
    grant: Grant
    expires: float
    generation: str | None


class TicketStore:
    """Issues, verifies and revokes tickets."""

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
        """Return a ticket for channels that a grant opens; ``client_key`` is the client's address.

        Raises TooManyRequests or Unavailable. Cancelling is safe.
        """
        text, now = secrets.token_urlsafe(TICKET_BYTES), self._clock()
        expires = now + self._lifetime_seconds
        if grant.expires is not None:
            expires = min(expires, grant.expires + grant.leeway)
        key, holder = _store_key("ticket", text), client_key if grant.subject is None else grant.subject
        seconds = max(expires - now, 0.001)
        opened = msgspec.structs.replace(grant, claims=None, opened=frozenset(channels))
        stored = _StoredTicket(opened, expires, await self._current_generation(grant.subject))
        if holder is None:
            await self._shared_store.put(key, msgspec.json.encode(stored), seconds)
            return Ticket(text, expires)
        slot = QuotaSlot(_store_key("tickets", holder), key, MAX_TICKETS_PER_SUBJECT)
        acquiring = asyncio.ensure_future(self._shared_store.acquire_slots([slot], seconds))
        try:
            # Shielded: if this is cancelled, the store may still acquire the slot; it is released after that.
            if not all(await asyncio.shield(acquiring)):
                raise TooManyRequests(
                    f"the limit of {MAX_TICKETS_PER_SUBJECT} valid tickets is reached", retry_after=5
                )
            await self._shared_store.put(key, msgspec.json.encode(stored), seconds)
        except BaseException:
            releasing = asyncio.create_task(self._release_slot(acquiring, slot), name="release ticket slot")
            self._release_tasks.add(releasing)
            releasing.add_done_callback(self._release_tasks.discard)
            raise
        return Ticket(text, expires)

    async def _release_slot(self, acquiring: "asyncio.Future[list[bool]]", slot: QuotaSlot) -> None:
        """Release the slot of a ticket that was not issued; while the log is unavailable, it expires."""
        await asyncio.wait([acquiring])
        with suppress(Unavailable):
            await self._shared_store.release_slots([slot])

    async def resolve(self, ticket: str) -> Grant:
        """Return the grant of a ticket. Waits only for a ticket that is not cached here.

        Raises Unauthorized or Unavailable. Cancelling is safe.
        """
        key, since = _store_key("ticket", ticket), self._revocations.count
        cached = self._cache.get(key)
        if cached is not None:
            return self._unexpired_grant(cached)
        await enter_task()
        value = await self._shared_store.get(key)
        if value is None:
            raise invalid_token("the ticket is unknown or has expired")
        stored = msgspec.json.decode(value, type=_StoredTicket)
        current = await self._current_generation(stored.grant.subject)
        # None: the last revocation is so long ago that all tickets from before it have expired.
        if current is not None and current != stored.generation:
            raise invalid_token("the ticket was revoked")
        if since == self._revocations.count:
            self._cache.put(key, stored)
        return self._unexpired_grant(stored)

    async def revoke(self, subject: str) -> None:
        """Revoke a subject's tickets. Raises Unavailable. All nodes must then call `clear_cache`."""
        await self._shared_store.put(
            _store_key("generation", subject), secrets.token_hex(8).encode(), self._lifetime_seconds + 1
        )

    def clear_cache(self) -> None:
        """Read every ticket from the shared store again."""
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
