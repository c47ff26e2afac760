"""Finds what a request may do: by its token, its ticket, or the forward-auth endpoint.

Nearly every answer comes from a cache without waiting. The others wait for an issuer's key, for a ticket that
another node issued, or for the endpoint.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import aiohttp

from gateway.auth.backends import AuthBackends, BackendBuilder
from gateway.auth.credentials import (
    TICKET_PARAMETER,
    bearer_token,
    check_fetch_metadata,
    find_credential,
    strip_query,
)
from gateway.auth.forward import AuthRequest
from gateway.auth.grant import ANONYMOUS, Grant
from gateway.auth.jwks import JwksClient
from gateway.auth.jwt import invalid_token
from gateway.auth.revocation import RecentRevocations, RevocationRule, RevokedGrants
from gateway.auth.rules import authorize, is_public, required_auth
from gateway.auth.tickets import Ticket
from gateway.broker.shared_store import SharedStore
from gateway.config.channel_catalog import ChannelMatch
from gateway.config.model.auth import AuthConfig
from gateway.config.model.config import ChannelConfig
from gateway.core.errors import NotFound, Unauthorized
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

FIRST_FETCH_TIMEOUT_SECONDS = 2.0
"""How long a start waits for issuers' keys."""


class Authenticator:
    """What ``auth`` says, for as long as the node lives: `prepare` and `take` bring what a reload changes.

    ``ignored`` names query values that forward auth need not know. Raises StartupError where a key file
    cannot be used.
    """

    def __init__(
        self,
        auth: AuthConfig | None,
        channels: Iterable[ChannelConfig],
        shared_store: SharedStore,
        metrics: Metrics,
        ignored_query: Iterable[str],
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        self._background = background
        self._session: aiohttp.ClientSession | None = None
        self.revocations = RecentRevocations()
        self._refresh_tasks: dict[JwksClient, asyncio.Task[None]] = {}
        self._backend_builder = BackendBuilder(
            shared_store, metrics, self.revocations, self._http_session, tuple(ignored_query)
        )
        self._set_backends(self._backend_builder.build_backends(auth, channels, None))

    async def start(self) -> None:
        """Fetch the issuers' keys, and keep them fresh."""
        await self._start_key_refresh(self._backends)

    async def prepare(self, auth: AuthConfig | None, channels: Iterable[ChannelConfig]) -> AuthBackends:
        """Return what another configuration makes, its keys fetched if they can be: `take` it, or `drop` it.

        Raises StartupError where a key file cannot be used. Cancelling is safe.
        """
        means = self._backend_builder.build_backends(auth, channels, self._backends)
        try:
            await self._start_key_refresh(means)
        except BaseException:
            self.dispose(means)
            raise
        return means

    def activate(self, backends: AuthBackends) -> None:
        """Decide by these from now on."""
        older = self._backends
        self._set_backends(backends)
        self.dispose(older)

    def dispose(self, backends: AuthBackends) -> None:
        """End what only these needed."""
        for ring in backends.key_sets:
            if ring not in self._backends.key_sets and ring in self._refresh_tasks:
                self._refresh_tasks.pop(ring).cancel()

    def revoked_by(self, backends: AuthBackends) -> RevokedGrants:
        """Return which of the grants that were given would not be given so by these."""
        return RevokedGrants(
            has_token_grants=not backends.trusts_issuers_of(self._backends),
            has_channel_grants=self._backends.auth.forward is not None
            and backends.auth.forward != self._backends.auth.forward,
        )

    async def close(self) -> None:
        """Stop; harmless when repeated."""
        for task in self._refresh_tasks.values():
            task.cancel()
        await asyncio.gather(*self._refresh_tasks.values(), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    @property
    def has_tickets(self) -> bool:
        """Whether the file lets tickets be had."""
        return self._backends.tickets is not None

    async def resolve(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> Grant:
        """Return what the request may. Waits only for what no cache holds.

        Raises Unauthorized, Forbidden, Unavailable. Cancelling is safe.
        """
        plan, tickets = self._plan(request, matches), self._backends.tickets
        if plan.ticket is not None and tickets is not None:
            return await tickets.resolve(plan.ticket)
        return await self._resolve_plan(plan)

    async def issue_ticket(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> Ticket:
        """Return a new ticket for channels that the request's token opens.

        Raises like `resolve`, and TooManyRequests.
        """
        if not is_public(matches):
            self._plan(request, matches)  # a missing token names its channel, as for a stream
        tickets = self._backends.tickets
        if tickets is None:
            raise NotFound("no tickets are given here: the file has no auth.tickets")
        token = bearer_token(request.headers)
        if token is None:
            raise Unauthorized("a ticket is given for a token: Authorization: Bearer …", code="missing_token")
        since = self.revocations.count
        grant = await self._resolve_plan(
            _Plan(None, token, self._restrict_to_forward(request, matches, is_used_here=True))
        )
        authorize(matches, grant)
        ticket = await tickets.issue(grant, [match.name for match in matches], request.client_key)
        if self.revocations.match_since(since, grant, {}):
            raise invalid_token("the token's subject was thrown out just now")
        return ticket

    async def revoke_tickets(self, subject: str) -> None:
        """End a subject's tickets on all nodes. Raises Unavailable. All nodes must be told to `forget`."""
        if self._backends.tickets is not None:
            await self._backends.tickets.revoke(subject)

    def apply_revocation(self, revocation: RevocationRule) -> None:
        """Remember nothing that was decided before."""
        self.revocations.add(revocation)
        if self._backends.tickets is not None:
            self._backends.tickets.clear_cache()
        if self._backends.forward is not None:
            self._backends.forward.clear_cache()

    def uses_query_parameter(self, name: str) -> bool:
        """Tell whether a query name may decide about a request: the token's, or any for forward auth."""
        auth = self._backends.auth
        return name == auth.query or auth.forward is not None

    def _plan(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> "_Plan":
        """Return what must be looked at.

        Raises Unauthorized where a token is missing, Forbidden where a page of another origin lets a browser
        send what it sends by itself.
        """
        wanted = required_auth(matches)
        credential = find_credential(request.headers, request.query, self._backends.auth)
        if credential is not None and credential.kind == "ticket":
            return _Plan(credential.value, None, None)
        if wanted.is_token_required and credential is None:
            authorize(matches, ANONYMOUS)  # says which channel
        place = None if credential is None else credential.location
        # Whatever the endpoint looks at, a proxy in front may have added it for the user's session.
        if place == "cookie" or (wanted.is_forward_required and place != "header"):
            check_fetch_metadata(request.headers)
        token = credential.value if wanted.is_token_required and credential is not None else None
        if not wanted.is_forward_required:
            return _Plan(None, token, None)
        is_used_here = wanted.is_token_required or place != "query"
        return _Plan(None, token, self._restrict_to_forward(request, matches, is_used_here=is_used_here))

    def _restrict_to_forward(
        self, request: AuthRequest, matches: Iterable[ChannelMatch], *, is_used_here: bool
    ) -> AuthRequest:
        """Return what the endpoint is asked: its own channels, and no credential that is not for it.

        A token in the query is for it where it is the request's credential, and not ``is_used_here``.
        """
        auth = self._backends.auth
        hidden = {TICKET_PARAMETER} if auth.tickets is not None else set()
        if auth.query is not None and is_used_here:
            hidden.add(auth.query)
        names = tuple(match.name for match in matches if match.declared.config.access == "forward")
        return request._replace(
            channels=names, uri=strip_query(request.uri, hidden) if hidden else request.uri
        )

    async def _resolve_plan(self, plan: "_Plan") -> Grant:
        grant, means = ANONYMOUS, self._backends
        if plan.token is not None:
            grant = await means.tokens.resolve(plan.token)
        if plan.forward is None or means.forward is None or not plan.forward.channels:
            return grant
        return grant.merge(await means.forward.resolve(plan.forward))

    def _set_backends(self, backends: AuthBackends) -> None:
        self._backends = backends
        for ring in backends.key_sets:
            ring.on_change = backends.tokens.clear_cache

    async def _start_key_refresh(self, backends: AuthBackends) -> None:
        """Keep key sets fresh that are not kept yet, and give the first fetch some time."""
        rings = [ring for ring in backends.key_sets if ring not in self._refresh_tasks]
        if not rings:
            return
        self._refresh_tasks |= {ring: self._background.start_task("key_refresh", ring.run) for ring in rings}
        tried = [asyncio.ensure_future(ring.first_fetch_done.wait()) for ring in rings]
        try:
            await asyncio.wait(tried, timeout=FIRST_FETCH_TIMEOUT_SECONDS)
        finally:
            for task in tried:
                task.cancel()

    def _http_session(self) -> aiohttp.ClientSession:
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
    forward: AuthRequest | None
