"""JSON Web Tokens to grants (RFC 7519, with the advice of RFC 8725).

A token says itself which algorithm, key and issuer it claims; each of them only chooses among what the file
allows, and nothing in a token is ever fetched, opened or looked up but in a dictionary. What was verified
once is remembered by the hash of the whole token, so a reconnect costs a hash and not a signature.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from jwt.utils import base64url_decode

from gateway.auth.grant import Claims, Grant
from gateway.bounded import Bounded
from gateway.config.auth import Jwt
from gateway.errors import Unauthorized, bearer_error

MAX_TOKEN = 8 * 1024
"""Longest token, in characters."""

REMEMBERED = 20_000
"""Verified tokens that are remembered."""

REMEMBERED_BYTES = 64 * 1024 * 1024
"""Bytes of what they grant: an issuer may put much into a claim that a rule asks for."""

ALIKE = 1000
"""Different claims that are remembered, for tokens to share."""

MAX_ALIKE = 1000
"""Characters of the longest claims that are shared: longer ones are hardly those of many users."""

FAILED = 1000
"""Tokens that proved nothing and are remembered, so that a client that insists costs a hash."""

FAILED_SECONDS = 10.0
"""How long those are remembered: the issuer's keys may be others by then."""

_MESSAGES: Sequence[tuple[type[Exception], str]] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidAudienceError, "the token is meant for another audience"),
    (jwt.InvalidIssuerError, "the token is from another issuer"),
    (jwt.InvalidAlgorithmError, "the token is signed with an algorithm that is not allowed here"),
    (jwt.InvalidSignatureError, "the token's signature is not its issuer's"),
    (
        jwt.MissingRequiredClaimError,
        "the token lacks a claim that it must have: exp, aud or iss",
    ),
)


class KeyRing(Protocol):
    """Keys that change while the gateway runs."""

    def find(self, id: str | None, algorithm: str) -> Any:
        """Return the key that a token names, or None."""

    async def ask(self, id: str | None, algorithm: str) -> None:
        """Fetch. Raises Unavailable where a key is not known and must not be asked for just now."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs tokens: what its file section says, and its one key or the ring of them."""

    config: Jwt
    key: Any = None
    ring: KeyRing | None = None


class Tokens:
    """Checks tokens. ``kept`` names the claims that rules may ask for."""

    def __init__(
        self, issuers: Sequence[Issuer], kept: Iterable[str], now: Callable[[], float] = time.time
    ) -> None:
        self._issuers = issuers
        self._by_name = {issuer.config.issuer: issuer for issuer in issuers}
        self._kept = frozenset(kept)
        self._now = now
        self._verified: Bounded[bytes, Grant] = Bounded(REMEMBERED, REMEMBERED_BYTES)
        self._claims: dict[str, Claims] = {}
        self._failed: OrderedDict[bytes, tuple[float, str]] = OrderedDict()

    def forget(self) -> None:
        """Verify all tokens again: the keys are others."""
        self._verified.clear()
        self._failed.clear()

    def at_once(self, token: str) -> Grant | None:
        """Return what a token grants, or None where `look` must ask for its key. Raises Unauthorized."""
        if len(token) > MAX_TOKEN:
            raise too_long()
        place = _digest(token)
        grant = self._verified.get(place)
        if grant is not None:
            self._check_expiry(grant)
            self._verified.move_to_end(place)
            return grant
        failed = self._failed.get(place)
        if failed is not None and self._now() - failed[0] < FAILED_SECONDS:
            raise invalid(failed[1])
        try:
            issuer, header = self._claimed(token)
            if _must_ask(issuer, header):
                return None
            return self._remember(place, self._verify(token, issuer, header))
        except Unauthorized as error:
            self._remember_failure(place, error.message)
            raise

    async def look(self, token: str) -> Grant:
        """Return what a token grants, after its issuer was asked for its key.

        Raises Unauthorized, or Unavailable while the issuer gives no keys. Cancelling is safe.
        """
        issuer, header = self._claimed(token)
        if _must_ask(issuer, header):
            assert issuer.ring is not None
            await issuer.ring.ask(header.get("kid"), str(header["alg"]))
        return self._remember(_digest(token), self._verify(token, issuer, header))

    def _claimed(self, token: str) -> tuple[Issuer, Mapping[str, Any]]:
        """Return who a token says that it is from, and its header: nothing of it is proven yet."""
        try:
            header = _header(token)
            issuer: Issuer | None = self._issuers[0]
            if len(self._issuers) > 1:
                claims = jwt.decode(token, options={"verify_signature": False})
                name = claims.get("iss")
                issuer = self._by_name.get(name) if isinstance(name, str) else None
        except _UNREADABLE as error:
            raise invalid(_told(error)) from None
        if issuer is None:
            raise invalid("the token is from another issuer")
        if header.get("alg") not in issuer.config.algorithms:
            raise invalid("the token is signed with an algorithm that is not allowed here")
        if "crit" in header:  # RFC 7515 §4.1.11: what is critical and not understood must be refused
            raise invalid("the token's header has critical parameters that are not understood")
        return issuer, header

    def _verify(self, token: str, issuer: Issuer, header: Mapping[str, Any]) -> Grant:
        config, algorithm = issuer.config, str(header["alg"])
        key = issuer.key
        if issuer.ring is not None:
            found = issuer.ring.find(header.get("kid"), algorithm)
            if found is None:
                raise invalid("the token is signed with a key that its issuer does not publish")
            key = found.key
        try:
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[algorithm],
                audience=config.audience,
                issuer=config.issuer,
                leeway=config.leeway,
                options={"require": ["exp"], "verify_aud": config.audience is not None},
            )
            expires = float(int(claims["exp"]))
        except _UNREADABLE as error:
            raise invalid(_told(error)) from None
        # Compared here too: PyJWT 2.10.0 took any part of the issuer's name for it (CVE-2024-53861).
        if config.issuer is not None and claims.get("iss") != config.issuer:
            raise invalid("the token is from another issuer")
        if expires > self._now() + config.max_lifetime:
            raise invalid("the token expires too far in the future (auth.jwt.max_lifetime)")
        return Grant(
            subject=_text(claims.get("sub")),
            issuer=_text(claims.get("iss")),
            claims=self._shared({claim: value for claim, value in claims.items() if claim in self._kept}),
            expires=expires,
            leeway=config.leeway,
        )

    def _shared(self, claims: Claims) -> Claims:
        """Return one object for equal claims: those of most users are the same."""
        try:
            text = repr(claims)
        except RecursionError:
            return claims
        if len(text) > MAX_ALIKE:
            return claims
        known = self._claims.setdefault(text, claims)
        if len(self._claims) > ALIKE:
            self._claims.clear()
        return known

    def _check_expiry(self, grant: Grant) -> None:
        if grant.expires is not None and self._now() >= grant.expires + grant.leeway:
            raise invalid("the token has expired")

    def _remember(self, place: bytes, grant: Grant) -> Grant:
        self._failed.pop(place, None)
        self._verified.put(place, grant)
        return grant

    def _remember_failure(self, place: bytes, message: str) -> None:
        self._failed[place] = self._now(), message
        if len(self._failed) > FAILED:
            self._failed.popitem(last=False)


def invalid(message: str) -> Unauthorized:
    """Return the refusal of a token that proves nothing (RFC 6750 §3.1)."""
    return Unauthorized(message, code="invalid_token", challenge=bearer_error("invalid_token", message))


def too_long() -> Unauthorized:
    """Return the refusal of a token that is not even looked at."""
    return invalid(f"the token is longer than {MAX_TOKEN} characters")


# What PyJWT and its JSON make of hostile input; numbers may be infinite, nesting bottomless.
_UNREADABLE = (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError, AttributeError, KeyError)


def _told(error: Exception) -> str:
    """Return our own words for what is wrong: the library's may hold parts of the token."""
    for kind, message in _MESSAGES:
        if isinstance(error, kind):
            return message
    return "the token is not a signed JWT as it should be"


def _header(token: str) -> Mapping[str, Any]:
    """Return what a token's first part says; PyJWT would decode all parts for it."""
    header = json.loads(base64url_decode(token.partition(".")[0]))
    if not isinstance(header, dict) or not isinstance(header.get("kid", ""), str):
        raise ValueError("no header of a JWT")
    return header


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _text(claim: Any) -> str | None:
    """Return a claim that names somebody. JSON may spell half a character, which has no bytes to store."""
    if not isinstance(claim, str):
        return None
    try:
        claim.encode()
    except UnicodeEncodeError:
        raise invalid("the token names somebody in a way that is no Unicode") from None
    return claim


def _must_ask(issuer: Issuer, header: Mapping[str, Any]) -> bool:
    return issuer.ring is not None and issuer.ring.find(header.get("kid"), str(header["alg"])) is None
