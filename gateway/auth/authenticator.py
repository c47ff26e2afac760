"""From a request to its grant: whoever must be asked is asked, and nobody else.

`at_once` answers whatever needs no waiting, which is nearly everything; `look` waits for the rest: a key
that was never seen, a ticket that another node gave, an endpoint without a fresh answer.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import aiohttp

from gateway.auth.credentials import bearer, find
from gateway.auth.forward import ForwardAuth, Question
from gateway.auth.grant import NOBODY, Grant
from gateway.auth.jwks import Jwks
from gateway.auth.keys import read_pem
from gateway.auth.revocations import Revocation, Revocations
from gateway.auth.rules import CHANNELS, authorize, needs
from gateway.auth.tickets import Ticket, Tickets
from gateway.auth.tokens import Issuer, Tokens, invalid
from gateway.broker.board import Board
from gateway.config.auth import Auth, Jwt
from gateway.config.catalog import Match
from gateway.config.model import Channel, ClaimsAccess
from gateway.errors import Unauthorized
from gateway.metrics import Metrics

FIRST_KEYS_SECONDS = 2.0
"""How long a start waits for issuers' keys."""


class Authenticator:
    """What ``auth`` says. Raises StartupError where a key file cannot be used.

    ``ignored`` names query values that forward auth need not know.
    """

    def __init__(
        self,
        auth: Auth | None,
        channels: Iterable[Channel],
        board: Board,
        metrics: Metrics,
        ignored: Iterable[str],
    ) -> None:
        self._auth = auth or Auth.model_validate({})
        self._metrics = metrics
        self._session: aiohttp.ClientSession | None = None
        self.revocations = Revocations()
        self.rings: list[Jwks] = []
        self._tasks: list[asyncio.Task[None]] = []
        kept = {CHANNELS}
        for channel in channels:
            if isinstance(channel.access, ClaimsAccess):
                kept.update(channel.access.claims)
        self._tokens = Tokens([self._issuer(jwt) for jwt in self._auth.jwt or ()], kept)
        tickets, forward = self._auth.tickets, self._auth.forward
        self._tickets = None if tickets is None else Tickets(board, tickets.lifetime, self.revocations)
        self._forward = (
            None
            if forward is None
            else ForwardAuth(forward, self._client, metrics, self.revocations, ignored)
        )

    async def start(self) -> None:
        """Fetch the issuers' keys, and keep them fresh."""
        if self.rings:
            self._tasks = [asyncio.create_task(ring.run(), name="keep keys") for ring in self.rings]
            tried = [asyncio.ensure_future(ring.tried.wait()) for ring in self.rings]
            _, late = await asyncio.wait(tried, timeout=FIRST_KEYS_SECONDS)
            for task in late:
                task.cancel()

    async def close(self) -> None:
        """Stop; harmless when repeated."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def gives_tickets(self) -> bool:
        """Whether the file lets tickets be had."""
        return self._tickets is not None

    def at_once(self, question: Question, matches: Sequence[Match]) -> Grant | None:
        """Return what the request may; None where `look` must ask somebody.

        Raises Unauthorized or Forbidden.
        """
        plan = self._plan(question, matches)
        if plan.ticket is not None and self._tickets is not None:
            return self._tickets.at_once(plan.ticket)
        grant = NOBODY if plan.token is None else self._tokens.at_once(plan.token)
        if grant is None or plan.forward is None or self._forward is None:
            return grant
        forwarded = self._forward.at_once(plan.forward)
        return None if forwarded is None else grant.joined(forwarded)

    async def look(self, question: Question, matches: Sequence[Match]) -> Grant:
        """Return what the request may. Raises Unauthorized, Forbidden, Unavailable. Cancelling is safe."""
        plan = self._plan(question, matches)
        if plan.ticket is not None and self._tickets is not None:
            return await self._tickets.look(plan.ticket)
        return await self._asked(plan)

    async def ticket(self, question: Question, matches: Sequence[Match]) -> Ticket:
        """Give a ticket for channels that the request's token opens.

        Raises like `look`, and TooManyRequests.
        """
        assert self._tickets is not None, "there is no route to here without tickets"
        token = bearer(question.headers)
        if token is None:
            raise Unauthorized("a ticket is given for a token: Authorization: Bearer …", code="missing_token")
        since = self.revocations.number
        grant = await self._asked(_Plan(None, token, _narrowed(question, matches)))
        authorize(matches, grant)
        ticket = await self._tickets.give(grant, [match.name for match in matches], question.whose)
        if self.revocations.hit(since, grant, ()):
            raise invalid("the token's subject was thrown out just now")
        return ticket

    async def end(self, subject: str) -> None:
        """End a subject's tickets on all nodes. Raises Unavailable. All nodes must be told to `forget`."""
        if self._tickets is not None:
            await self._tickets.end(subject)

    def forget(self, revocation: Revocation) -> None:
        """Remember nothing that was decided before."""
        self.revocations.add(revocation)
        if self._tickets is not None:
            self._tickets.forget()
        if self._forward is not None:
            self._forward.forget()

    def _plan(self, question: Question, matches: Sequence[Match]) -> "_Plan":
        """Return what must be looked at. Raises Unauthorized where a token is missing."""
        wanted = needs(matches)
        credential = find(question.headers, question.query, self._auth)
        if credential is not None and credential.kind == "ticket":
            return _Plan(credential.text, None, None)
        if wanted.token and credential is None:
            authorize(matches, NOBODY)  # says which channel
        token = credential.text if wanted.token and credential is not None else None
        return _Plan(None, token, _narrowed(question, matches) if wanted.forward else None)

    async def _asked(self, plan: "_Plan") -> Grant:
        grant = NOBODY
        if plan.token is not None:
            grant = self._tokens.at_once(plan.token) or await self._tokens.look(plan.token)
        if plan.forward is None or self._forward is None or not plan.forward.channels:
            return grant
        return grant.joined(self._forward.at_once(plan.forward) or await self._forward.look(plan.forward))

    def _issuer(self, jwt: Jwt) -> Issuer:
        if jwt.secret is not None:
            return Issuer(jwt, jwt.secret.get_secret_value())
        if jwt.public_key_file is not None:
            return Issuer(jwt, read_pem(jwt.public_key_file, jwt.algorithms))
        ring = Jwks(jwt, self._client, self._metrics, lambda: self._tokens.forget())
        self.rings.append(ring)
        return Issuer(jwt, ring=ring)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # each asker bounds itself
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "sse-gateway"},
            )
        return self._session


class _Plan(NamedTuple):
    """What a request's grant comes from: a ticket alone; else a token, the endpoint, or both."""

    ticket: str | None
    token: str | None
    forward: Question | None


def _narrowed(question: Question, matches: Iterable[Match]) -> Question:
    names = tuple(match.name for match in matches if match.declared.spec.access == "forward")
    return question._replace(channels=names)
