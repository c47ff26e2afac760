"""Authenticates requests: from credentials to a `Grant`.

Nearly every grant comes from a cache without waiting. The others wait for an issuer's key, for a ticket that
another node issued, or for the forward-auth endpoint.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import aiohttp

from gateway.auth.backends import AuthBackends, AuthDependencies, build_backends
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
    """Authenticates the requests of one node; a reload replaces its backends by `prepare` and `activate`.

    ``ignored_query`` names query values that forward auth ignores. Raises StartupError where a key file
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
        self._dependencies = AuthDependencies(
            shared_store, metrics, self.revocations, self._http_session, tuple(ignored_query)
        )
        self._set_backends(build_backends(auth, channels, None, self._dependencies))

    async def start(self) -> None:
        """Fetch the issuers' keys, and keep them fresh."""
        await self._start_key_refresh(self._backends)

    async def prepare(self, auth: AuthConfig | None, channels: Iterable[ChannelConfig]) -> AuthBackends:
        """Return the backends of another configuration, their keys fetched if possible.

        Pass them to `activate` or `dispose`. Raises StartupError where a key file cannot be used. Cancelling
        is safe.
        """
        backends = build_backends(auth, channels, self._backends, self._dependencies)
        try:
            await self._start_key_refresh(backends)
        except BaseException:
            self.dispose(backends)
            raise
        return backends

    def activate(self, backends: AuthBackends) -> None:
        """Authenticate with these backends from now on."""
        older = self._backends
        self._set_backends(backends)
        self.dispose(older)

    def dispose(self, backends: AuthBackends) -> None:
        """Stop the refresh of key sets that only these backends use."""
        for key_set in backends.key_sets:
            if key_set not in self._backends.key_sets and key_set in self._refresh_tasks:
                self._refresh_tasks.pop(key_set).cancel()

    def revoked_by(self, backends: AuthBackends) -> RevokedGrants:
        """Return which kinds of issued grants these backends would not issue in the same way."""
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
        """Whether the configuration enables tickets."""
        return self._backends.tickets is not None

    async def resolve(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> Grant:
        """Return the request's grant. Waits only for what no cache holds.

        Raises Unauthorized, Forbidden, Unavailable. Cancelling is safe.
        """
        plan, tickets = self._plan(request, matches), self._backends.tickets
        if plan.ticket is not None and tickets is not None:
            return await tickets.resolve(plan.ticket)
        return await self._resolve_plan(plan)

    async def issue_ticket(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> Ticket:
        """Issue a ticket for channels that the request's token opens.

        Raises like `resolve`, and TooManyRequests.
        """
        if not is_public(matches):
            self._plan(request, matches)  # a missing token names its channel, as for a stream
        tickets = self._backends.tickets
        if tickets is None:
            raise NotFound("this gateway issues no tickets: its configuration has no auth.tickets")
        token = bearer_token(request.headers)
        if token is None:
            raise Unauthorized(
                "a ticket requires a token: send Authorization: Bearer …", code="missing_token"
            )
        since = self.revocations.count
        grant = await self._resolve_plan(
            _Plan(None, token, self._restrict_to_forward(request, matches, is_used_here=True))
        )
        authorize(matches, grant)
        ticket = await tickets.issue(grant, [match.name for match in matches], request.client_key)
        if self.revocations.match_since(since, grant, {}):
            raise invalid_token("the token's subject was revoked a moment ago")
        return ticket

    async def revoke_tickets(self, subject: str) -> None:
        """Revoke a subject's tickets. Raises Unavailable. All nodes must then clear their caches."""
        if self._backends.tickets is not None:
            await self._backends.tickets.revoke(subject)

    def apply_revocation(self, revocation: RevocationRule) -> None:
        """Drop the cached decisions that were made before a revocation."""
        self.revocations.add(revocation)
        if self._backends.tickets is not None:
            self._backends.tickets.clear_cache()
        if self._backends.forward is not None:
            self._backends.forward.clear_cache()

    def uses_query_parameter(self, name: str) -> bool:
        """Tell whether a query value may affect the decision: the token's, or any with forward auth."""
        auth = self._backends.auth
        return name == auth.query or auth.forward is not None

    def _plan(self, request: AuthRequest, matches: Sequence[ChannelMatch]) -> "_Plan":
        """Return which credentials and backends decide about a request.

        Raises Unauthorized where a token is missing, Forbidden where a page of another origin relies on
        credentials that a browser attaches by itself.
        """
        wanted = required_auth(matches)
        credential = find_credential(request.headers, request.query, self._backends.auth)
        if credential is not None and credential.kind == "ticket":
            return _Plan(credential.value, None, None)
        if wanted.is_token_required and credential is None:
            authorize(matches, ANONYMOUS)  # says which channel
        location = None if credential is None else credential.location
        # Whatever the endpoint inspects, a proxy in front may have added it for the user's session.
        if location == "cookie" or (wanted.is_forward_required and location != "header"):
            check_fetch_metadata(request.headers)
        token = credential.value if wanted.is_token_required and credential is not None else None
        if not wanted.is_forward_required:
            return _Plan(None, token, None)
        is_used_here = wanted.is_token_required or location != "query"
        return _Plan(None, token, self._restrict_to_forward(request, matches, is_used_here=is_used_here))

    def _restrict_to_forward(
        self, request: AuthRequest, matches: Iterable[ChannelMatch], *, is_used_here: bool
    ) -> AuthRequest:
        """Return the request for the forward-auth endpoint: its channels, without credentials of others.

        A token in the query belongs to the endpoint if it is the credential and not ``is_used_here``.
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
        grant, backends = ANONYMOUS, self._backends
        if plan.token is not None:
            grant = await backends.tokens.resolve(plan.token)
        if plan.forward is None or backends.forward is None or not plan.forward.channels:
            return grant
        return grant.merge(await backends.forward.resolve(plan.forward))

    def _set_backends(self, backends: AuthBackends) -> None:
        self._backends = backends
        for key_set in backends.key_sets:
            key_set.on_change = backends.tokens.clear_cache

    async def _start_key_refresh(self, backends: AuthBackends) -> None:
        """Start the refresh of new key sets, and wait some time for the first fetch."""
        new = [each for each in backends.key_sets if each not in self._refresh_tasks]
        if not new:
            return
        self._refresh_tasks |= {each: self._background.start_task("key_refresh", each.run) for each in new}
        first_fetches = [asyncio.ensure_future(each.first_fetch_done.wait()) for each in new]
        try:
            await asyncio.wait(first_fetches, timeout=FIRST_FETCH_TIMEOUT_SECONDS)
        finally:
            for task in first_fetches:
                task.cancel()

    def _http_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)  # each user of the session has its own bound
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "sse-gateway"},
            )
        return self._session


class _Plan(NamedTuple):
    """Where a request's grant comes from: a ticket alone; else a token, forward auth, or both."""

    ticket: str | None
    token: str | None
    forward: AuthRequest | None
