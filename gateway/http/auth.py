"""Who asks, and whether they may read a channel. Holds keys, no state."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.config.catalog import Match
from gateway.config.model import Auth, ClaimsAccess
from gateway.config.template import fill
from gateway.errors import Forbidden, StartupError, Unauthorized

LEEWAY = 30
"""Seconds that the clocks of issuer and gateway may differ."""

MAX_TOKEN = 8 * 1024
"""Longest token, in characters."""

Claims = Mapping[str, Any]


class Authenticator:
    """Checks tokens as ``auth.jwt`` says. Raises StartupError where the key cannot be used."""

    def __init__(self, auth: Auth | None) -> None:
        self._jwt = auth.jwt if auth is not None else None
        self._key: Any = None
        if self._jwt is None:
            return
        if self._jwt.secret is not None:
            self._key = self._jwt.secret.get_secret_value()
        elif self._jwt.public_key_file is not None:
            self._key = _public_key(self._jwt.public_key_file, self._jwt.algorithms[0])

    def claims(self, authorization: str | None) -> Claims | None:
        """Return the verified claims of an ``Authorization`` header, or None where there is none.

        Raises Unauthorized for a token that proves nothing. A token is only looked at when some
        channel could want it.
        """
        if authorization is None or self._jwt is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        if len(token) > MAX_TOKEN:
            raise _invalid(f"the token is longer than {MAX_TOKEN} characters")
        try:
            claims: Claims = jwt.decode(
                token.strip(),
                key=self._key,
                algorithms=list(self._jwt.algorithms),
                audience=self._jwt.audience,
                issuer=self._jwt.issuer,
                leeway=LEEWAY,
                options={"require": ["exp"], "verify_aud": self._jwt.audience is not None},
            )
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError) as error:
            raise _invalid(_why(error)) from None
        return claims


def authorize(matches: Iterable[Match], claims: Claims | None) -> None:
    """Check that a reader may have all of these channels.

    Raises Unauthorized where a token is missing, Forbidden where it does not reach.
    """
    for match in matches:
        access = match.declared.spec.access
        if access == "public":
            continue
        if claims is None:
            raise Unauthorized(f"the channel {match.name!r} needs a token", code="missing_token")
        if isinstance(access, ClaimsAccess):
            _check_claims(match, access.claims, claims)
        elif not _lists(claims.get("channels"), match.name):
            raise Forbidden(
                f"the token's channels claim does not list {match.name!r}", code="channel_forbidden"
            )


def _check_claims(match: Match, rules: Mapping[str, str], claims: Claims) -> None:
    for claim, rule in rules.items():
        wanted = fill(rule, match.fields)
        value = claims.get(claim)
        values = value if isinstance(value, list) else [value]
        if wanted not in [str(each) for each in values if isinstance(each, (str, int))]:
            raise Forbidden(
                f"the token's {claim} claim does not allow {match.name!r}", code="channel_forbidden"
            )


def _lists(claim: Any, name: str) -> bool:
    patterns = [claim] if isinstance(claim, str) else claim
    return isinstance(patterns, list) and any(
        isinstance(pattern, str) and (pattern == name or ("*" in pattern and _glob(pattern, name)))
        for pattern in patterns
    )


def _glob(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


_KEY_TYPES: dict[str, Any] = {
    "RS": RSAPublicKey,
    "ES": EllipticCurvePublicKey,
    "Ed": (Ed25519PublicKey, Ed448PublicKey),
}


def _public_key(file: str, algorithm: str) -> Any:
    try:
        key = load_pem_public_key(Path(file).read_bytes())
    except OSError as error:
        raise StartupError(f"cannot read auth.jwt.public_key_file {file}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(f"auth.jwt.public_key_file {file} holds no PEM public key") from None
    if not isinstance(key, _KEY_TYPES[algorithm[:2]]):
        raise StartupError(f"auth.jwt.public_key_file {file} holds no key for {algorithm}")
    return key


_WHY: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token's aud is not auth.jwt.audience",
    jwt.InvalidIssuerError: "the token's iss is not auth.jwt.issuer",
    jwt.InvalidAlgorithmError: "the token's alg is not one of auth.jwt.algorithms",
    jwt.InvalidSignatureError: "the token's signature is not that of our key",
    jwt.DecodeError: "the token is no JWT that can be read",
}


def _why(error: Exception) -> str:
    """Return what is wrong with a token in words of ours: the library's may quote it."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token has no {error.claim}"
    return next((text for kind, text in _WHY.items() if isinstance(error, kind)), "the token is not valid")


def _invalid(message: str) -> Unauthorized:
    return Unauthorized(message, code="invalid_token", challenge='Bearer error="invalid_token"')
