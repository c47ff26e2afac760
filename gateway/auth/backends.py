"""The token, ticket and forward-auth backends that one configuration's ``auth`` section describes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from gateway.auth.forward import ForwardAuth
from gateway.auth.jwks import JwksClient
from gateway.auth.jwt import Issuer, TokenVerifier
from gateway.auth.keys import read_pem
from gateway.auth.revocation import RecentRevocations
from gateway.auth.rules import CHANNELS_CLAIM
from gateway.auth.tickets import TicketStore
from gateway.broker.shared_store import SharedStore
from gateway.config.model.auth import AuthConfig
from gateway.config.model.config import ChannelConfig, ClaimsAccessConfig
from gateway.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class AuthBackends:
    """The backends of one configuration; a reload builds others."""

    auth: AuthConfig
    issuers: Sequence[Issuer]
    key_sets: Sequence[JwksClient]
    """Key sets that must be kept fresh: each issuer has its own, also where two share a URL."""
    tokens: TokenVerifier
    tickets: TicketStore | None
    forward: ForwardAuth | None

    def trusts_issuers_of(self, older: "AuthBackends") -> bool:
        """Tell whether every issuer of an older configuration is still one, with the same key."""
        return all(
            any(issuer.config == other.config and issuer.key == other.key for other in self.issuers)
            for issuer in older.issuers
        )


@dataclass(frozen=True, slots=True)
class AuthDependencies:
    """What backends use of the node. ``ignored_query`` names query values that forward auth ignores."""

    shared_store: SharedStore
    metrics: Metrics
    revocations: RecentRevocations
    http_session: Callable[[], aiohttp.ClientSession]
    ignored_query: Iterable[str]


def build_backends(
    auth: AuthConfig | None,
    channels: Iterable[ChannelConfig],
    older: AuthBackends | None,
    node: AuthDependencies,
) -> AuthBackends:
    """Return the backends of a configuration; key sets and forward auth that did not change are reused.

    Raises StartupError where a key file cannot be used.
    """
    auth = auth or AuthConfig.model_validate({})
    older_key_sets = [] if older is None else older.key_sets
    issuers: list[Issuer] = []
    key_sets: list[JwksClient] = []
    for jwt in auth.jwt or ():
        if jwt.secret is not None:
            issuers.append(Issuer(jwt, jwt.secret.get_secret_value()))
        elif jwt.public_key_file is not None:
            issuers.append(Issuer(jwt, read_pem(jwt.public_key_file, jwt.algorithms)))
        else:
            reused = next((each for each in older_key_sets if each.config == jwt), None)
            key_sets.append(reused or JwksClient(jwt, node.http_session, node.metrics))
            issuers.append(Issuer(jwt, key_set=key_sets[-1]))
    kept_claims = {CHANNELS_CLAIM}
    for channel in channels:
        if isinstance(channel.access, ClaimsAccessConfig):
            kept_claims.update(channel.access.claims)
    tickets = forward = None
    if auth.tickets is not None:
        tickets = TicketStore(node.shared_store, auth.tickets.lifetime, node.revocations)
    if older is not None and older.auth.forward == auth.forward:
        forward = older.forward
    elif auth.forward is not None:
        forward = ForwardAuth(
            auth.forward, node.http_session, node.metrics, node.revocations, node.ignored_query
        )
    return AuthBackends(auth, issuers, key_sets, TokenVerifier(issuers, kept_claims), tickets, forward)
