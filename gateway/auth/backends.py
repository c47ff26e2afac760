"""What the ``auth`` section of one configuration makes: whoever can say what a request may."""

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
from gateway.config.model.auth import AuthConfig, JwtConfig
from gateway.config.model.config import ChannelConfig, ClaimsAccessConfig
from gateway.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class AuthBackends:
    """One configuration's; a reload makes another."""

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
class BackendBuilder:
    """Makes them. ``ignored`` names query values that forward auth need not know."""

    shared_store: SharedStore
    metrics: Metrics
    revocations: RecentRevocations
    http_session: Callable[[], aiohttp.ClientSession]
    ignored_query: Iterable[str]
    on_keys_change: Callable[[], None]
    """Called when the keys of an issuer differ from those before."""

    def build_backends(
        self, auth: AuthConfig | None, channels: Iterable[ChannelConfig], older: AuthBackends | None
    ) -> AuthBackends:
        """Return the means of a configuration; what it shares with an older one goes on.

        Raises StartupError where a key file cannot be used.
        """
        auth = auth or AuthConfig.model_validate({})
        rings: list[JwksClient] = []
        issuers = [self._build_issuer(jwt, rings, older) for jwt in auth.jwt or ()]
        kept = {CHANNELS_CLAIM}
        for channel in channels:
            if isinstance(channel.access, ClaimsAccessConfig):
                kept.update(channel.access.claims)
        tickets = None
        if auth.tickets is not None:
            tickets = TicketStore(self.shared_store, auth.tickets.lifetime, self.revocations)
        if older is not None and older.auth.forward == auth.forward:
            forward = older.forward
        elif auth.forward is None:
            forward = None
        else:
            forward = ForwardAuth(
                auth.forward, self.http_session, self.metrics, self.revocations, self.ignored_query
            )
        return AuthBackends(auth, issuers, rings, TokenVerifier(issuers, kept), tickets, forward)

    def _build_issuer(self, jwt: JwtConfig, key_sets: list[JwksClient], older: AuthBackends | None) -> Issuer:
        if jwt.secret is not None:
            return Issuer(jwt, jwt.secret.get_secret_value())
        if jwt.public_key_file is not None:
            return Issuer(jwt, read_pem(jwt.public_key_file, jwt.algorithms))
        assert jwt.jwks_url is not None, "the model wants one of the three"
        same = () if older is None else (ring for ring in older.key_sets if ring.config == jwt)
        known = next(iter(same), None) or JwksClient(
            jwt, self.http_session, self.metrics, self.on_keys_change
        )
        key_sets.append(known)
        return Issuer(jwt, key_set=known)
