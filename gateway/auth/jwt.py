"""JSON Web Tokens to grants (RFC 7519, with the advice of RFC 8725).

A token says itself which algorithm, key and issuer it claims; each of them only chooses among what the file
allows, and nothing in a token is ever fetched, opened or looked up but in a dictionary. What was verified
once is remembered by the hash of the whole token, so a reconnect costs a hash and not a signature.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from jwt.utils import base64url_decode

from gateway.auth.grant import Claims, Grant, claim_in_words
from gateway.config.model.auth import Jwt
from gateway.core.bounded import Bounded
from gateway.core.errors import Unauthorized, bearer_error

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
    (jwt.InvalidAlgorithmError, "the token is signed with an algorithm that is not allowed here"),
    (jwt.InvalidSignatureError, "the token's signature is not its issuer's"),
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
            name: Any = None
            if len(self._issuers) > 1:
                claims = jwt.decode(token, options={"verify_signature": False})
                name = claims.get("iss")
                issuer = self._by_name.get(name) if isinstance(name, str) else None
        except _UNREADABLE as error:
            raise invalid(_told(error)) from None
        if issuer is None:
            raise invalid(f"the token is from another issuer: its iss claim {claim_in_words(name)}")
        if header.get("alg") not in issuer.config.algorithms:
            said = claim_in_words(header.get("alg"))
            raise invalid(f"the token is signed with an algorithm that is not allowed here: its alg {said}")
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
        except _UNPROVEN as error:
            raise invalid(_told(error)) from None
        except _UNREADABLE as error:
            raise invalid(self._claim_fault(token, key, algorithm, config) or _told(error)) from None
        # Compared here too: PyJWT 2.10.0 took any part of the issuer's name for it (CVE-2024-53861).
        if config.issuer is not None and claims.get("iss") != config.issuer:
            raise invalid(
                f"the token is from another issuer: its iss claim {claim_in_words(claims.get('iss'))}"
            )
        if expires > self._now() + config.max_lifetime:
            raise invalid("the token's exp claim is too far in the future (auth.jwt.max_lifetime)")
        return Grant(
            subject=_text("sub", claims.get("sub")),
            issuer=_text("iss", claims.get("iss")),
            claims=self._shared({claim: value for claim, value in claims.items() if claim in self._kept}),
            expires=expires,
            leeway=config.leeway,
        )

    def _claim_fault(self, token: str, key: Any, algorithm: str, config: Jwt) -> str | None:
        """Return which claim is wrong, and how; None where no claim is, or the signature is not good."""
        try:
            claims = jwt.decode(token, key=key, algorithms=[algorithm], options=_SIGNATURE_ALONE)
            return next(claim_faults(claims, config, self._now()), None)
        except _UNREADABLE:
            return None

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


_UNPROVEN = (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError)

# What PyJWT and its JSON make of hostile input; numbers may be infinite, nesting bottomless.
_UNREADABLE = (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError, AttributeError, KeyError)


def _told(error: Exception) -> str:
    """Return our own words for what is wrong: the library's may hold parts of the token."""
    for kind, message in _MESSAGES:
        if isinstance(error, kind):
            return message
    return "the token is not a signed JWT as it should be"


_SIGNATURE_ALONE: Any = {
    "require": [],
    **{f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "iss", "aud", "sub", "jti")},
}


def claim_faults(claims: Claims, config: Jwt, now: float) -> Iterator[str]:
    """Yield what is wrong with the claims of a token whose signature is good: RFC 7519 §4.1, and the file."""
    if claims.get("exp") is None:
        yield "the token's exp claim is missing: it must say when the token ends, in unix seconds"
    for name in ("iat", "nbf", "exp"):
        if claims.get(name) is None and (name not in claims or name == "exp"):
            continue
        try:
            seconds = int(claims[name])
        except (TypeError, ValueError, OverflowError):
            yield f"the token's {name} claim {claim_in_words(claims[name])}, and must be unix seconds"
            continue
        if name == "exp" and seconds <= now - config.leeway:
            yield "the token has expired: its exp claim is over"
        elif name != "exp" and seconds > now + config.leeway:
            yield f"the token is not valid yet: its {name} claim is ahead of this clock"
    yield from _name_faults("iss", claims, config.issuer, "from another issuer", is_list=False)
    yield from _name_faults("aud", claims, config.audience, "meant for another audience", is_list=True)
    for name in ("sub", "jti"):
        if name in claims and not isinstance(claims[name], str):
            yield f"the token's {name} claim {claim_in_words(claims[name])}, and must be text"


def _name_faults(name: str, claims: Claims, wanted: str | None, what: str, *, is_list: bool) -> Iterator[str]:
    """Yield what is wrong with a claim of one name, or of several (``is_list``), of which one is wanted."""
    if wanted is None:
        return
    value = claims.get(name)
    names = value if is_list and isinstance(value, list) else [value]
    if value is None or value in ("", []):
        yield f"the token's {name} claim is missing"
    elif not all(isinstance(each, str) for each in names):
        yield f"the token's {name} claim {claim_in_words(value)}, and must be text"
    elif wanted not in names:
        yield f"the token is {what}: its {name} claim {claim_in_words(value)}"


def _header(token: str) -> Mapping[str, Any]:
    """Return what a token's first part says; PyJWT would decode all parts for it."""
    header = json.loads(base64url_decode(token.partition(".")[0]))
    if not isinstance(header, dict) or not isinstance(header.get("kid", ""), str):
        raise ValueError("no header of a JWT")
    return header


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _text(name: str, claim: Any) -> str | None:
    """Return a claim that names somebody. JSON may spell half a character, which has no bytes to store."""
    if not isinstance(claim, str):
        return None
    try:
        claim.encode()
    except UnicodeEncodeError:
        raise invalid(f"the token's {name} claim is not valid Unicode") from None
    return claim


def _must_ask(issuer: Issuer, header: Mapping[str, Any]) -> bool:
    return issuer.ring is not None and issuer.ring.find(header.get("kid"), str(header["alg"])) is None
