"""Public keys: reads them from PEM or JWK, and checks which algorithms each supports."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from gateway.core.errors import StartupError

MIN_RSA_BITS = 2048
"""Shortest RSA key (RFC 7518 §3.3)."""

ERROR_PREFIX = "auth.jwt.public_key_file: "
"""The beginning of errors about a key file."""

_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}


class VerificationKey(msgspec.Struct, frozen=True):
    """A public key for the verification of tokens."""

    id: str | None
    algorithm: str | None
    """The algorithm that its publisher restricts it to; None: any that the key supports."""
    key: Any

    def supports(self, algorithm: str) -> bool:
        """Tell whether it can verify tokens of an algorithm."""
        return self.algorithm in (None, algorithm) and is_key_for(self.key, algorithm)


def is_key_for(key: Any, algorithm: str) -> bool:
    """Tell whether a key has the type, curve or length that an algorithm requires."""
    match algorithm[:2]:
        case "RS":
            return isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS
        case "ES":
            return isinstance(key, EllipticCurvePublicKey) and key.curve.name == _CURVES[algorithm]
        case _:
            return isinstance(key, (Ed25519PublicKey, Ed448PublicKey))


def read_pem(file: str, algorithms: Iterable[str]) -> Any:
    """Return the key in a PEM file. Raises StartupError if it does not support all ``algorithms``."""
    content = b""
    try:
        content = Path(file).read_bytes()
        key = load_pem_public_key(content)
    except OSError as error:
        raise StartupError(f"{ERROR_PREFIX}cannot read {file}: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartupError(
            f"{ERROR_PREFIX}{file} holds no PEM public key{_pem_hint(content, file)}"
        ) from None
    for algorithm in algorithms:
        if not is_key_for(key, algorithm):
            raise StartupError(f"{ERROR_PREFIX}{file} holds no key for {algorithm}")
    return key


def _pem_hint(content: bytes, file: str) -> str:
    """Return what a file contains instead of a public key, and the command that extracts one."""
    if b"PRIVATE KEY-----" in content:
        return f", but a private one, which is the issuer's alone: openssl pkey -in {file} -pubout"
    if b"-----BEGIN CERTIFICATE-----" in content:
        return f", but a certificate: openssl x509 -in {file} -noout -pubkey"
    return ""


def read_jwks(document: Any, algorithms: Iterable[str]) -> list[VerificationKey]:
    """Return the keys of a JWK set (RFC 7517 §5) that support one of ``algorithms``; others are ignored.

    Raises ValueError if it is not a JWK set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("is not a JWK set: it has no list of keys")
    keys = [key for each in listed if isinstance(each, dict) and (key := _parse_jwk(each)) is not None]
    return [key for key in keys if any(key.supports(algorithm) for algorithm in algorithms)]


def _parse_jwk(jwk: Mapping[str, Any]) -> VerificationKey | None:
    operations = jwk.get("key_ops")
    if jwk.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return None
    if jwk.get("kty") not in ("RSA", "EC", "OKP") or "d" in jwk:  # a secret, or a private key by mistake
        return None
    id, algorithm = jwk.get("kid"), jwk.get("alg")
    try:
        key = jwt.PyJWK(dict(jwk)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return VerificationKey(
        id if isinstance(id, str) else None, algorithm if isinstance(algorithm, str) else None, key
    )
