"""From a request to its grant: whoever must be asked is asked, and nobody else.

`at_once` answers whatever needs no waiting, which is nearly everything; `look` waits for the rest: a key
that was never seen, a ticket that another node gave, an endpoint without a fresh answer.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import aiohttp

from gateway.auth.backends import Maker, Means
from gateway.auth.credentials import TICKET, bearer, check_page, find, without
from gateway.auth.forward import Question
from gateway.auth.grant import NOBODY, Grant
from gateway.auth.jwks import Jwks
from gateway.auth.jwt import invalid
from gateway.auth.revocation import Revocations, Void, Withdrawal
from gateway.auth.rules import authorize, needs
from gateway.auth.tickets import Ticket
from gateway.broker.shared_store import Board
from gateway.config.catalog import Match
from gateway.config.model.auth import Auth
from gateway.config.model.config import Channel
from gateway.core.errors import NotFound, Unauthorized
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.metrics import Metrics

FIRST_KEYS_SECONDS = 2.0
"""How long a start waits for issuers' keys."""


class Authenticator:
    """What ``auth`` says, for as long as the node lives: `prepare` and `take` bring what a reload changes.

    ``ignored`` names query values that forward auth need not know. Raises StartupError where a key file
    cannot be used.
    """

    def __init__(
        self,
        auth: Auth | None,
        channels: Iterable[Channel],
        board: Board,
        metrics: Metrics,
        ignored: Iterable[str],
        background: Background = UNCOUNTED,
    ) -> None:
        self._background = background
        self._session: aiohttp.ClientSession | None = None
        self.revocations = Revocations()
        self._tasks: dict[Jwks, asyncio.Task[None]] = {}
        self._maker = Maker(board, metrics, self.revocations, self._client, tuple(ignored))
        self._use(self._maker.make(auth, channels, None))

    async def start(self) -> None:
        """Fetch the issuers' keys, and keep them fresh."""
        await self._keep(self._means)

    async def prepare(self, auth: Auth | None, channels: Iterable[Channel]) -> Means:
        """Return what another configuration makes, its keys fetched if they can be: `take` it, or `drop` it.

        Raises StartupError where a key file cannot be used. Cancelling is safe.
        """
        means = self._maker.make(auth, channels, self._means)
        try:
            await self._keep(means)
        except BaseException:
            self.drop(means)
            raise
        return means

    def take(self, means: Means) -> None:
        """Decide by these from now on."""
        older = self._means
        self._use(means)
        self.drop(older)

    def drop(self, means: Means) -> None:
        """End what only these needed."""
        for ring in means.rings:
            if ring not in self._means.rings and ring in self._tasks:
                self._tasks.pop(ring).cancel()

    def voids(self, means: Means) -> Void:
        """Return which of the grants that were given would not be given so by these."""
        return Void(
            tokens=not means.vouches_like(self._means),
            opened=self._means.auth.forward is not None and means.auth.forward != self._means.auth.forward,
        )

    async def close(self) -> None:
        """Stop; harmless when repeated."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def gives_tickets(self) -> bool:
        """Whether the file lets tickets be had."""
        return self._means.tickets is not None

    def at_once(self, question: Question, matches: Sequence[Match]) -> Grant | None:
        """Return what the request may; None where `look` must ask somebody.

        Raises Unauthorized or Forbidden.
        """
        plan, means = self._plan(question, matches), self._means
        if plan.ticket is not None and means.tickets is not None:
            return means.tickets.at_once(plan.ticket)
        grant = NOBODY if plan.token is None else means.tokens.at_once(plan.token)
        if grant is None or plan.forward is None or means.forward is None:
            return grant
        forwarded = means.forward.at_once(plan.forward)
        return None if forwarded is None else grant.joined(forwarded)

    async def look(self, question: Question, matches: Sequence[Match]) -> Grant:
        """Return what the request may. Raises Unauthorized, Forbidden, Unavailable. Cancelling is safe."""
        plan, means = self._plan(question, matches), self._means
        if plan.ticket is not None and means.tickets is not None:
            return await means.tickets.look(plan.ticket)
        return await self._asked(plan)

    async def ticket(self, question: Question, matches: Sequence[Match]) -> Ticket:
        """Give a ticket for channels that the request's token opens.

        Raises like `look`, and TooManyRequests.
        """
        tickets = self._means.tickets
        if tickets is None:
            raise NotFound("no tickets are given here: the file has no auth.tickets")
        token = bearer(question.headers)
        if token is None:
            raise Unauthorized("a ticket is given for a token: Authorization: Bearer …", code="missing_token")
        since = self.revocations.number
        grant = await self._asked(_Plan(None, token, self._narrowed(question, matches, is_used_here=True)))
        authorize(matches, grant)
        ticket = await tickets.give(grant, [match.name for match in matches], question.whose)
        if self.revocations.hit(since, grant, {}):
            raise invalid("the token's subject was thrown out just now")
        return ticket

    async def end(self, subject: str) -> None:
        """End a subject's tickets on all nodes. Raises Unavailable. All nodes must be told to `forget`."""
        if self._means.tickets is not None:
            await self._means.tickets.end(subject)

    def forget(self, revocation: Withdrawal) -> None:
        """Remember nothing that was decided before."""
        self.revocations.add(revocation)
        if self._means.tickets is not None:
            self._means.tickets.forget()
        if self._means.forward is not None:
            self._means.forward.forget()

    def reads_query(self, name: str) -> bool:
        """Tell whether a query name may decide about a request: the token's, or any for forward auth."""
        auth = self._means.auth
        return name == auth.query or auth.forward is not None

    def _plan(self, question: Question, matches: Sequence[Match]) -> "_Plan":
        """Return what must be looked at.

        Raises Unauthorized where a token is missing, Forbidden where a page of another origin lets a browser
        send what it sends by itself.
        """
        wanted = needs(matches)
        credential = find(question.headers, question.query, self._means.auth)
        if credential is not None and credential.kind == "ticket":
            return _Plan(credential.text, None, None)
        if wanted.token and credential is None:
            authorize(matches, NOBODY)  # says which channel
        place = None if credential is None else credential.place
        # Whatever the endpoint looks at, a proxy in front may have added it for the user's session.
        if place == "cookie" or (wanted.forward and place != "header"):
            check_page(question.headers)
        token = credential.text if wanted.token and credential is not None else None
        if not wanted.forward:
            return _Plan(None, token, None)
        is_used_here = wanted.token or place != "query"
        return _Plan(None, token, self._narrowed(question, matches, is_used_here=is_used_here))

    def _narrowed(self, question: Question, matches: Iterable[Match], *, is_used_here: bool) -> Question:
        """Return what the endpoint is asked: its own channels, and no credential that is not for it.

        A token in the query is for it where it is the request's credential, and not ``is_used_here``.
        """
        auth = self._means.auth
        hidden = {TICKET} if auth.tickets is not None else set()
        if auth.query is not None and is_used_here:
            hidden.add(auth.query)
        names = tuple(match.name for match in matches if match.declared.spec.access == "forward")
        return question._replace(
            channels=names, uri=without(question.uri, hidden) if hidden else question.uri
        )

    async def _asked(self, plan: "_Plan") -> Grant:
        grant, means = NOBODY, self._means
        if plan.token is not None:
            grant = means.tokens.at_once(plan.token) or await means.tokens.look(plan.token)
        if plan.forward is None or means.forward is None or not plan.forward.channels:
            return grant
        return grant.joined(means.forward.at_once(plan.forward) or await means.forward.look(plan.forward))

    def _use(self, means: Means) -> None:
        self._means = means
        for ring in means.rings:
            ring.on_change = means.tokens.forget

    async def _keep(self, means: Means) -> None:
        """Keep key sets fresh that are not kept yet, and give the first fetch some time."""
        rings = [ring for ring in means.rings if ring not in self._tasks]
        if not rings:
            return
        self._tasks |= {ring: self._background.start("key_refresh", ring.run) for ring in rings}
        tried = [asyncio.ensure_future(ring.tried.wait()) for ring in rings]
        try:
            await asyncio.wait(tried, timeout=FIRST_KEYS_SECONDS)
        finally:
            for task in tried:
                task.cancel()

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
