"""Verifies JSON Web Tokens and turns them into grants (RFC 7519, with the advice of RFC 8725).

A token's own algorithm, key id and issuer only select among what the configuration allows; nothing that a
token names is ever fetched or opened. A verified token is cached by the hash of the whole token, so a
reconnect costs a hash and not a signature.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from jwt.utils import base64url_decode

from gateway.auth.grant import Claims, Grant, describe_claim
from gateway.config.model.auth import JwtConfig
from gateway.core.bounded_dict import BoundedDict
from gateway.core.errors import Unauthorized, bearer_challenge
from gateway.observability.eager import enter_task

MAX_TOKEN_CHARS = 8 * 1024
"""Longest token, in characters."""

MAX_CACHED_TOKENS = 20_000
"""Verified tokens that are cached."""

MAX_CACHED_BYTES = 64 * 1024 * 1024
"""Bytes of their grants: an issuer may put much into a claim that a rule uses."""

MAX_SHARED_CLAIMS = 1000
"""Different sets of claims that tokens share."""

MAX_SHARED_CLAIMS_CHARS = 1000
"""Characters of the longest claims that are shared: longer ones hardly occur twice."""

MAX_CACHED_FAILURES = 1000
"""Invalid tokens that are cached, so that a client that repeats one costs a hash."""

FAILURE_CACHE_SECONDS = 10.0
"""How long those are cached: the issuer's keys may have changed by then."""

_ALGORITHM_NOT_ALLOWED = "the token is signed with an algorithm that is not allowed here"
_ERROR_MESSAGES: Sequence[tuple[type[Exception], str]] = (
    (jwt.InvalidAlgorithmError, _ALGORITHM_NOT_ALLOWED),
    (jwt.InvalidSignatureError, "the token's signature is not its issuer's"),
)


class KeySet(Protocol):
    """Keys of an issuer that change while the gateway runs."""

    def find_key(self, id: str | None, algorithm: str) -> Any:
        """Return the key that a token names, or None."""

    async def fetch_missing(self, id: str | None, algorithm: str) -> None:
        """Fetch the keys again. Raises Unavailable if a key is unknown and may not be fetched now."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer of tokens: its configuration, and its only key or its key set."""

    config: JwtConfig
    key: Any = None
    key_set: KeySet | None = None


class TokenVerifier:
    """Verifies tokens. ``kept_claims`` names the claims that access rules use."""

    def __init__(
        self, issuers: Sequence[Issuer], kept_claims: Iterable[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._issuers = issuers
        self._issuers_by_name = {issuer.config.issuer: issuer for issuer in issuers}
        self._kept_claims = frozenset(kept_claims)
        self._clock = clock
        self._verified: BoundedDict[bytes, Grant] = BoundedDict(MAX_CACHED_TOKENS, MAX_CACHED_BYTES)
        self._interned_claims: dict[str, Claims] = {}
        self._failures: BoundedDict[bytes, tuple[float, str]] = BoundedDict(MAX_CACHED_FAILURES)

    def clear_cache(self) -> None:
        """Verify all tokens again: the keys have changed."""
        self._verified.clear()
        self._failures.clear()

    async def resolve(self, token: str) -> Grant:
        """Return what a token grants. Waits only if its issuer's key must be fetched.

        Raises Unauthorized, or Unavailable while the issuer's keys cannot be fetched. Cancelling is safe.
        """
        if len(token) > MAX_TOKEN_CHARS:
            raise token_too_long()
        digest = _digest(token)
        grant = self._verified.get(digest)
        if grant is not None:
            self._check_expiry(grant)
            self._verified.move_to_end(digest)
            return grant
        failed = self._failures.get(digest)
        if failed is not None and self._clock() - failed[0] < FAILURE_CACHE_SECONDS:
            raise invalid_token(failed[1])
        try:
            issuer, header = self._claimed_issuer(token)
            if not _needs_fetch(issuer, header):
                return self._cache_grant(digest, self._verify(token, issuer, header))
        except Unauthorized as error:
            self._failures.put(digest, (self._clock(), error.message))
            raise
        assert issuer.key_set is not None
        await enter_task()
        await issuer.key_set.fetch_missing(header.get("kid"), str(header["alg"]))
        return self._cache_grant(digest, self._verify(token, issuer, header))

    def _claimed_issuer(self, token: str) -> tuple[Issuer, Mapping[str, Any]]:
        """Return the issuer that a token claims, and its header: nothing of it is verified yet."""
        try:
            header = _decode_header(token)
            issuer: Issuer | None = self._issuers[0]
            name: Any = None
            if len(self._issuers) > 1:
                claims = jwt.decode(token, options={"verify_signature": False})
                name = claims.get("iss")
                issuer = self._issuers_by_name.get(name) if isinstance(name, str) else None
        except _DECODE_ERRORS as error:
            raise invalid_token(_error_message(error)) from None
        if issuer is None:
            raise invalid_token(f"the token is from another issuer: its iss claim {describe_claim(name)}")
        if header.get("alg") not in issuer.config.algorithms:
            algorithm = describe_claim(header.get("alg"))
            raise invalid_token(f"{_ALGORITHM_NOT_ALLOWED}: its alg {algorithm}")
        if "crit" in header:  # RFC 7515 §4.1.11: a token with unknown critical parameters must be rejected
            raise invalid_token("the token's header has critical parameters, which are not supported")
        return issuer, header

    def _verify(self, token: str, issuer: Issuer, header: Mapping[str, Any]) -> Grant:
        config, algorithm = issuer.config, str(header["alg"])
        key = issuer.key
        if issuer.key_set is not None:
            found = issuer.key_set.find_key(header.get("kid"), algorithm)
            if found is None:
                raise invalid_token("the token is signed with a key that its issuer does not publish")
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
        except _VERIFICATION_ERRORS as error:
            raise invalid_token(_error_message(error)) from None
        except _DECODE_ERRORS as error:
            raise invalid_token(
                self._claim_error(token, key, algorithm, config) or _error_message(error)
            ) from None
        # Compared again: PyJWT 2.10.0 accepts any substring of the issuer (CVE-2024-53861).
        if config.issuer is not None and claims.get("iss") != config.issuer:
            raise invalid_token(
                f"the token is from another issuer: its iss claim {describe_claim(claims.get('iss'))}"
            )
        if expires > self._clock() + config.max_lifetime:
            raise invalid_token("the token's exp claim is too far in the future (auth.jwt.max_lifetime)")
        return Grant(
            subject=_text_claim("sub", claims.get("sub")),
            issuer=_text_claim("iss", claims.get("iss")),
            claims=self._intern_claims(
                {claim: value for claim, value in claims.items() if claim in self._kept_claims}
            ),
            expires=expires,
            leeway=config.leeway,
        )

    def _claim_error(self, token: str, key: Any, algorithm: str, config: JwtConfig) -> str | None:
        """Return which claim is wrong, and how; None if none is, or the signature is invalid."""
        try:
            claims = jwt.decode(token, key=key, algorithms=[algorithm], options=_SIGNATURE_ONLY)
            return next(claim_errors(claims, config, self._clock()), None)
        except _DECODE_ERRORS:
            return None

    def _intern_claims(self, claims: Claims) -> Claims:
        """Return one object for equal claims: most users have the same."""
        try:
            text = repr(claims)
        except RecursionError:
            return claims
        if len(text) > MAX_SHARED_CLAIMS_CHARS:
            return claims
        known = self._interned_claims.setdefault(text, claims)
        if len(self._interned_claims) > MAX_SHARED_CLAIMS:
            self._interned_claims.clear()
        return known

    def _check_expiry(self, grant: Grant) -> None:
        if grant.expires is not None and self._clock() >= grant.expires + grant.leeway:
            raise invalid_token("the token has expired")

    def _cache_grant(self, digest: bytes, grant: Grant) -> Grant:
        self._failures.remove(digest)
        self._verified.put(digest, grant)
        return grant


def invalid_token(message: str) -> Unauthorized:
    """Return the error for an invalid token (RFC 6750 §3.1)."""
    return Unauthorized(message, code="invalid_token", challenge=bearer_challenge("invalid_token", message))


def token_too_long() -> Unauthorized:
    """Return the error for a token of more than `MAX_TOKEN_CHARS` characters."""
    return invalid_token(f"the token is longer than {MAX_TOKEN_CHARS} characters")


_VERIFICATION_ERRORS = (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError)

# What PyJWT and its JSON decoder raise for hostile input: numbers may be infinite, nesting bottomless.
_DECODE_ERRORS = (
    jwt.PyJWTError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    AttributeError,
    KeyError,
)


def _error_message(error: Exception) -> str:
    """Return a message without parts of the token, which the library's may contain."""
    for kind, message in _ERROR_MESSAGES:
        if isinstance(error, kind):
            return message
    return "the token is not a well-formed signed JWT"


_SIGNATURE_ONLY: Any = {
    "require": [],
    **{f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "iss", "aud", "sub", "jti")},
}


def claim_errors(claims: Claims, config: JwtConfig, now: float) -> Iterator[str]:
    """Yield the errors in the claims of a token with a valid signature (RFC 7519 §4.1)."""
    if claims.get("exp") is None:
        yield "the token's exp claim is missing: it must say when the token ends, in unix seconds"
    for name in ("iat", "nbf", "exp"):
        if claims.get(name) is None and (name not in claims or name == "exp"):
            continue
        try:
            seconds = int(claims[name])
        except (TypeError, ValueError, OverflowError):
            yield f"the token's {name} claim {describe_claim(claims[name])}, and must be unix seconds"
            continue
        if name == "exp" and seconds <= now - config.leeway:
            yield "the token has expired: its exp claim is over"
        elif name != "exp" and seconds > now + config.leeway:
            yield f"the token is not valid yet: its {name} claim is ahead of this clock"
    yield from _name_claim_errors("iss", claims, config.issuer, "from another issuer", is_list=False)
    yield from _name_claim_errors("aud", claims, config.audience, "meant for another audience", is_list=True)
    for name in ("sub", "jti"):
        if name in claims and not isinstance(claims[name], str):
            yield f"the token's {name} claim {describe_claim(claims[name])}, and must be text"


def _name_claim_errors(
    name: str, claims: Claims, wanted: str | None, what: str, *, is_list: bool
) -> Iterator[str]:
    """Yield the error of a claim that must be, or as a list (``is_list``) contain, the ``wanted`` name."""
    if wanted is None:
        return
    value = claims.get(name)
    names = value if is_list and isinstance(value, list) else [value]
    if value is None or value in ("", []):
        yield f"the token's {name} claim is missing"
    elif not all(isinstance(each, str) for each in names):
        yield f"the token's {name} claim {describe_claim(value)}, and must be text"
    elif wanted not in names:
        yield f"the token is {what}: its {name} claim {describe_claim(value)}"


def _decode_header(token: str) -> Mapping[str, Any]:
    """Return a token's header; PyJWT would decode all parts for it."""
    header = json.loads(base64url_decode(token.partition(".")[0]))
    if not isinstance(header, dict) or not isinstance(header.get("kid", ""), str):
        raise ValueError("not the header of a JWT")
    return header


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _text_claim(name: str, claim: Any) -> str | None:
    """Return a claim as text, None if it is not; JSON may escape a lone surrogate, which is rejected."""
    if not isinstance(claim, str):
        return None
    try:
        claim.encode()
    except UnicodeEncodeError:
        raise invalid_token(f"the token's {name} claim is not valid Unicode") from None
    return claim


def _needs_fetch(issuer: Issuer, header: Mapping[str, Any]) -> bool:
    return (
        issuer.key_set is not None and issuer.key_set.find_key(header.get("kid"), str(header["alg"])) is None
    )
