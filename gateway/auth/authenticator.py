"""From a request to its grant: whoever must be asked is asked, and nobody else.

`at_once` answers whatever needs no waiting, which is nearly everything; `look` waits for the rest: a key
that was never seen, a ticket that another node gave, an endpoint without a fresh answer.
"""

import asyncio
from collections.abc import Iterable, Sequence

import aiohttp

from gateway.auth.credentials import Credential, bearer, find
from gateway.auth.forward import ForwardAuth, Question
from gateway.auth.grant import NOBODY, Grant
from gateway.auth.jwks import Jwks
from gateway.auth.keys import read_pem
from gateway.auth.rules import CHANNELS, authorize, needs
from gateway.auth.tickets import Ticket, Tickets
from gateway.auth.tokens import Issuer, Tokens
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
        self.rings: list[Jwks] = []
        self._tasks: list[asyncio.Task[None]] = []
        kept = {CHANNELS}
        for channel in channels:
            if isinstance(channel.access, ClaimsAccess):
                kept.update(channel.access.claims)
        self._tokens = Tokens([self._issuer(jwt) for jwt in self._auth.jwt or ()], kept)
        tickets, forward = self._auth.tickets, self._auth.forward
        self._tickets = None if tickets is None else Tickets(board, tickets.lifetime)
        self._forward = None if forward is None else ForwardAuth(forward, self._client, metrics, ignored)

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
        wanted = needs(matches)
        if not any(wanted):
            return NOBODY
        credential = find(question.headers, question.query, self._auth)
        if credential is not None and credential.kind == "ticket":
            return self._tickets.at_once(credential.text) if self._tickets is not None else NOBODY
        grant: Grant | None = NOBODY
        if wanted.token:
            grant = self._tokens.at_once(_required(credential, matches))
        if grant is None or not wanted.forward or self._forward is None:
            return grant
        forwarded = self._forward.at_once(_narrowed(question, matches))
        return None if forwarded is None else grant.joined(forwarded)

    async def look(self, question: Question, matches: Sequence[Match]) -> Grant:
        """Return what the request may. Raises Unauthorized, Forbidden, Unavailable. Cancelling is safe."""
        wanted = needs(matches)
        if not any(wanted):
            return NOBODY
        credential = find(question.headers, question.query, self._auth)
        if credential is not None and credential.kind == "ticket" and self._tickets is not None:
            return await self._tickets.look(credential.text)
        grant = NOBODY
        if wanted.token:
            grant = await self._token(_required(credential, matches))
        return await self._with_forward(grant, question, matches)

    async def ticket(self, question: Question, matches: Sequence[Match]) -> Ticket:
        """Give a ticket for channels that the request's token opens. Raises like `look`."""
        assert self._tickets is not None, "there is no route to here without tickets"
        token = bearer(question.headers)
        if token is None:
            raise Unauthorized("a ticket is given for a token: Authorization: Bearer …", code="missing_token")
        grant = await self._with_forward(await self._token(token), question, matches)
        authorize(matches, grant)
        return await self._tickets.give(grant, (match.name for match in matches))

    async def end(self, subject: str) -> None:
        """End what a subject has beside its streams. Raises Unavailable. Other nodes must be told."""
        if self._tickets is not None:
            await self._tickets.end(subject)
        self.forget(subject)

    def forget(self, subject: str) -> None:
        """Ask again whoever decided about a subject."""
        if self._tickets is not None:
            self._tickets.forget(subject)
        if self._forward is not None:
            self._forward.forget(subject)

    async def _token(self, token: str) -> Grant:
        return self._tokens.at_once(token) or await self._tokens.look(token)

    async def _with_forward(self, grant: Grant, question: Question, matches: Sequence[Match]) -> Grant:
        if self._forward is None or not needs(matches).forward:
            return grant
        narrowed = _narrowed(question, matches)
        return grant.joined(self._forward.at_once(narrowed) or await self._forward.look(narrowed))

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


def _required(credential: Credential | None, matches: Iterable[Match]) -> str:
    if credential is None:
        name = next(m.name for m in matches if m.declared.spec.access not in ("public", "forward"))
        raise Unauthorized(f"the channel {name!r} needs a token", code="missing_token")
    return credential.text


def _narrowed(question: Question, matches: Iterable[Match]) -> Question:
    names = tuple(match.name for match in matches if match.declared.spec.access == "forward")
    return question._replace(channels=names)
