"""Verifiers that need no body: tokens, passwords and client certificates of webhook senders. Pure.

Secrets are compared in constant time. Basic: RFC 7617. Bearer: RFC 6750. Certificate names: RFC 6125.
"""

import hashlib
import hmac
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import SecretStr

from gateway.core.errors import Unauthorized
from gateway.webhooks.decoding import decode_base64

Headers = Mapping[str, str]
"""By names in lower case."""

PeerCertificate = Mapping[str, Any]
"""As `ssl.SSLSocket.getpeercert` returns it; empty or None if the client presented none."""

_NAME_KINDS = ("DNS", "URI", "email")


class VerifiedMessage(NamedTuple):
    """What a signature proves about a message, besides its sender."""

    message_id: str | None = None
    """The message's own id, the same on every delivery attempt."""
    attempt_id: str | None = None
    """Unique to a message; attempts differ if the sender signs the time of each.

    If it is set, ``message_id`` is too: other nodes find the message's events by that in the log.
    """
    event_type: str | None = None


UNIDENTIFIED = VerifiedMessage()


class Verifier:
    """Verifies the sender of a post. Methods raise Unauthorized; its message holds no secret."""

    needs_body = False
    has_ambient_credentials = False
    """Whether a browser authenticates by itself, for any page that makes it post."""

    def check_headers(self, headers: Headers, token: str | None) -> None:
        """Check the headers before the body is read. ``token`` is the query's ``access_token``."""

    def check_certificate(self, certificate: PeerCertificate | None, now: float) -> None:
        """Check the client certificate, which TLS has verified; ``now`` is in unix seconds."""

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        """Verify the body, and return what its signature proves; ``now`` is in unix seconds."""
        return UNIDENTIFIED


class BearerVerifier(Verifier):
    """``Authorization: Bearer`` or ``?access_token=`` with one of several tokens."""

    def __init__(self, tokens: Sequence[SecretStr], *, in_query: bool) -> None:
        # Digests, so that the comparison takes the same time for tokens of any length.
        self._tokens = [digest(token.get_secret_value()) for token in tokens]
        self._in_query = in_query

    def check_headers(self, headers: Headers, token: str | None) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not given and self._in_query:
            given = token or ""
        if not given:
            hint = ", or ?access_token=<token>" if self._in_query else ""
            raise Unauthorized(
                f"this webhook requires Authorization: Bearer <token>{hint}", code="missing_token"
            )
        if not any_equal([digest(given)], self._tokens):
            raise Unauthorized(
                "the token is not one of this webhook's",
                code="invalid_token",
                challenge='Bearer error="invalid_token"',
            )


class BasicAuthVerifier(Verifier):
    """``Authorization: Basic`` with one of several users and their passwords."""

    has_ambient_credentials = True

    def __init__(self, users: Sequence[SecretStr]) -> None:
        self._users = [digest(user.get_secret_value()) for user in users]

    def check_headers(self, headers: Headers, token: str | None) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        challenge = 'Basic realm="webhook", charset="UTF-8"'
        if scheme.lower() != "basic":
            raise Unauthorized(
                "this webhook requires Authorization: Basic", code="missing_token", challenge=challenge
            )
        try:
            user = decode_base64(given.strip()).decode()
        except ValueError:
            user = ""
        if not any_equal([digest(user)], self._users):
            raise Unauthorized(
                "the user and password are not one of this webhook's",
                code="invalid_token",
                challenge=challenge,
            )


class ClientCertificateVerifier(Verifier):
    """A client certificate that has one of several names."""

    has_ambient_credentials = True

    def __init__(self, allowed_names: Sequence[str]) -> None:
        self._allowed_names = frozenset(allowed_names)

    def check_certificate(self, certificate: PeerCertificate | None, now: float) -> None:
        if not certificate:
            message, code = "this webhook requires a client certificate", "missing_certificate"
        elif ssl.cert_time_to_seconds(certificate["notAfter"]) <= now:  # connections outlive the handshake
            message, code = "the client certificate has expired", "expired_certificate"
        elif not _certificate_names(certificate) & self._allowed_names:
            message, code = "the client certificate has none of this webhook's names", "unknown_certificate"
        else:
            return
        raise Unauthorized(message, code=code, challenge="Certificate")


class AllowAllVerifier(Verifier):
    """``none: true``: accepts every sender that reaches the port."""

    has_ambient_credentials = True  # a page can use the browser's place in the network


def any_equal(given: Iterable[bytes], known: Sequence[bytes]) -> bool:
    """Compare each given value to each known one, in a time that does not show which pair was close."""
    equal = [hmac.compare_digest(one, other) for one in given for other in known]
    return any(equal)


def digest(text: str) -> bytes:
    """Return the SHA-256 digest of a text; lone surrogates are allowed."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _certificate_names(certificate: PeerCertificate) -> frozenset[str]:
    """Return the names of the subjectAltName, or else the common name.

    RFC 6125 §6.4.4: an authority that issues alternative names vouches for those, not for a common name.
    """
    alternatives = certificate.get("subjectAltName", ())
    if alternatives:
        return frozenset(name for kind, name in alternatives if kind in _NAME_KINDS)
    common = [
        name for group in certificate.get("subject", ()) for kind, name in group if kind == "commonName"
    ]
    return frozenset(common) if len(common) == 1 else frozenset()
