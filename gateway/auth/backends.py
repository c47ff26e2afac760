"""What the ``auth`` section of one configuration makes: whoever can say what a request may."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

from gateway.auth.forward import ForwardAuth
from gateway.auth.jwks import Jwks
from gateway.auth.jwt import Issuer, Tokens
from gateway.auth.keys import read_pem
from gateway.auth.revocation import Revocations
from gateway.auth.rules import CHANNELS
from gateway.auth.tickets import Tickets
from gateway.broker.shared_store import Board
from gateway.config.model.auth import Auth, Jwt
from gateway.config.model.config import Channel, ClaimsAccess
from gateway.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Means:
    """One configuration's; a reload makes another."""

    auth: Auth
    issuers: Sequence[Issuer]
    rings: Sequence[Jwks]
    """Key sets that must be kept fresh: each issuer has its own, also where two share a URL."""
    tokens: Tokens
    tickets: Tickets | None
    forward: ForwardAuth | None

    def vouches_like(self, older: "Means") -> bool:
        """Tell whether every issuer of an older configuration is still one, with the same key."""
        return all(
            any(issuer.config == other.config and issuer.key == other.key for other in self.issuers)
            for issuer in older.issuers
        )


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes them. ``ignored`` names query values that forward auth need not know."""

    board: Board
    metrics: Metrics
    revocations: Revocations
    session: Callable[[], aiohttp.ClientSession]
    ignored: Iterable[str]

    def make(self, auth: Auth | None, channels: Iterable[Channel], older: Means | None) -> Means:
        """Return the means of a configuration; what it shares with an older one goes on.

        Raises StartupError where a key file cannot be used.
        """
        auth = auth or Auth.model_validate({})
        rings: list[Jwks] = []
        issuers = [self._issuer(jwt, rings, older) for jwt in auth.jwt or ()]
        kept = {CHANNELS}
        for channel in channels:
            if isinstance(channel.access, ClaimsAccess):
                kept.update(channel.access.claims)
        tickets = None
        if auth.tickets is not None:
            tickets = Tickets(self.board, auth.tickets.lifetime, self.revocations)
        if older is not None and older.auth.forward == auth.forward:
            forward = older.forward
        elif auth.forward is None:
            forward = None
        else:
            forward = ForwardAuth(auth.forward, self.session, self.metrics, self.revocations, self.ignored)
        return Means(auth, issuers, rings, Tokens(issuers, kept), tickets, forward)

    def _issuer(self, jwt: Jwt, rings: list[Jwks], older: Means | None) -> Issuer:
        if jwt.secret is not None:
            return Issuer(jwt, jwt.secret.get_secret_value())
        if jwt.public_key_file is not None:
            return Issuer(jwt, read_pem(jwt.public_key_file, jwt.algorithms))
        assert jwt.jwks_url is not None, "the model wants one of the three"
        same = () if older is None else (ring for ring in older.rings if ring.config == jwt)
        known = next(iter(same), None) or Jwks(jwt, self.session, self.metrics)
        rings.append(known)
        return Issuer(jwt, ring=known)
