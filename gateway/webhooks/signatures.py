"""Signatures of webhooks over the bytes of the body. Pure; compares in constant time.

Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
GitHub: https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries (signs neither the
delivery id nor a time). Stripe: https://docs.stripe.com/webhooks#verify-manually.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import SecretStr

from gateway.config.model.verify import HmacConfig, VerifyConfig, decode_standard_webhooks_key
from gateway.config.placeholders import resolve_json_pointer
from gateway.core.errors import Unauthorized
from gateway.core.event import encode_lossless
from gateway.webhooks.credentials import (
    AllowAllVerifier,
    BasicAuthVerifier,
    BearerVerifier,
    ClientCertificateVerifier,
    Headers,
    VerifiedMessage,
    Verifier,
    any_equal,
)
from gateway.webhooks.decoding import decode_base64

MAX_SIGNATURES = 16
"""Signatures of one header that are compared."""

_STRIPE_PART = re.compile(r"\s*(t|v1)\s*=\s*([^,\s]*)\s*")
_PLACEHOLDER = re.compile(r"\{(id|timestamp)\}")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


class StandardWebhooksVerifier(Verifier):
    """Standard Webhooks, also with Svix's header names."""

    needs_body = True

    def __init__(self, secrets: Sequence[SecretStr], tolerance: float) -> None:
        self._keys = [decode_standard_webhooks_key(secret.get_secret_value()) for secret in secrets]
        self._tolerance = tolerance

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        prefix = "webhook-" if "webhook-signature" in headers else "svix-"
        id, timestamp, signatures = (
            headers.get(prefix + name, "") for name in ("id", "timestamp", "signature")
        )
        if not (id and timestamp and signatures):
            raise _missing_signature_error("the headers webhook-id, webhook-timestamp and webhook-signature")
        _check_timestamp(timestamp, now, self._tolerance)
        content = encode_lossless(f"{id}.{timestamp}.") + body
        given = [part.removeprefix("v1,") for part in signatures.split() if part.startswith("v1,")]
        _check_signature(given[:MAX_SIGNATURES], decode_base64, self._keys, content)
        return VerifiedMessage(id, f"{id} {timestamp}")


class GitHubVerifier(Verifier):
    """``X-Hub-Signature-256``; the event header is the type, the delivery header the id."""

    needs_body = True

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._keys = _keys(secrets)

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        signature = headers.get("x-hub-signature-256", "")
        if not signature.startswith("sha256="):
            raise _missing_signature_error("the header X-Hub-Signature-256")
        _check_signature([signature[7:]], bytes.fromhex, self._keys, body)
        delivery = headers.get("x-github-delivery")
        return VerifiedMessage(delivery, delivery, headers.get("x-github-event"))


class StripeVerifier(Verifier):
    """``Stripe-Signature: t=…,v1=…``."""

    needs_body = True

    def __init__(self, secrets: Sequence[SecretStr], tolerance: float) -> None:
        self._keys = _keys(secrets)
        self._tolerance = tolerance

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        parts = [_STRIPE_PART.fullmatch(part) for part in headers.get("stripe-signature", "").split(",")]
        pairs = [(part[1], part[2]) for part in parts if part is not None]
        timestamp = next((value for name, value in pairs if name == "t"), "")
        given = [value for name, value in pairs if name == "v1"]
        if not (timestamp and given):
            raise _missing_signature_error("the header Stripe-Signature with t and v1")
        _check_timestamp(timestamp, now, self._tolerance)
        content = encode_lossless(timestamp + ".") + body
        _check_signature(given[:MAX_SIGNATURES], bytes.fromhex, self._keys, content)
        # The header may be reordered; the body and the time are signed as they are.
        attempt = _attempt_id(timestamp, body)
        return VerifiedMessage(
            resolve_json_pointer(body, "/id") or attempt, attempt, resolve_json_pointer(body, "/type")
        )


class HmacVerifier(Verifier):
    """An HMAC over the body, or over a template around it."""

    needs_body = True

    def __init__(self, config: HmacConfig, tolerance: float) -> None:
        self._keys = _keys(config.secrets)
        self._header, self._signature_prefix = config.header.lower(), config.prefix
        self._algorithm = config.algorithm
        self._decode = bytes.fromhex if config.encoding == "hex" else decode_base64
        self._content_before, _, self._content_after = config.content.partition("{body}")
        self._id_header = config.id_header.lower() if config.id_header else None
        self._time_header = config.timestamp_header.lower() if config.timestamp_header else None
        self._tolerance = tolerance

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        signature = headers.get(self._header, "")
        if not signature.startswith(self._signature_prefix) or signature == self._signature_prefix:
            raise _missing_signature_error(
                f"the header {self._header}"
                + (f" with {self._signature_prefix}" if self._signature_prefix else "")
            )
        values = {}
        for name, header in (("id", self._id_header), ("timestamp", self._time_header)):
            if header is not None:
                values[name] = headers.get(header, "")
                if not values[name]:
                    raise _missing_signature_error(f"the header {header}")
        if "timestamp" in values:
            _check_timestamp(values["timestamp"], now, self._tolerance)
        content = (
            _fill_placeholders(self._content_before, values)
            + body
            + _fill_placeholders(self._content_after, values)
        )
        _check_signature(
            [signature.removeprefix(self._signature_prefix)],
            self._decode,
            self._keys,
            content,
            self._algorithm,
        )
        if "id" in values:
            return VerifiedMessage(values["id"], " ".join(values.values()))
        attempt = _attempt_id(values["timestamp"], body) if "timestamp" in values else None
        return VerifiedMessage(attempt, attempt)


def build_verifier(config: VerifyConfig) -> Verifier:
    """Return the verifier of a source's posts."""
    if config.standard_webhooks:
        return StandardWebhooksVerifier(config.standard_webhooks, config.tolerance)
    if config.github:
        return GitHubVerifier(config.github)
    if config.stripe:
        return StripeVerifier(config.stripe, config.tolerance)
    if config.hmac:
        return HmacVerifier(config.hmac, config.tolerance)
    if config.basic:
        return BasicAuthVerifier(config.basic)
    if config.client_certificate:
        return ClientCertificateVerifier(config.client_certificate)
    if config.bearer or config.access_token:
        return BearerVerifier(config.bearer or config.access_token or (), in_query=config.bearer is None)
    return AllowAllVerifier()


def _check_timestamp(text: str, now: float, tolerance: float) -> None:
    if not _UNIX_SECONDS.fullmatch(text):
        raise _signature_error("the timestamp is not a number of unix seconds", code="bad_signature")
    off = now - int(text)
    if abs(off) > tolerance:
        direction = "old" if off > 0 else "in the future"
        raise _signature_error(
            f"the timestamp is {abs(off):.0f} s {direction}; {tolerance:g} s are tolerated",
            code="expired_signature",
        )


def _check_signature(
    given: Iterable[str],
    decode: Callable[[str], bytes],
    keys: Sequence[bytes],
    content: bytes,
    algorithm: str = "sha256",
) -> None:
    known = [hmac.digest(key, content, algorithm) for key in keys]
    if not any_equal((_decode_or_empty(decode, text) for text in given), known):
        raise _signature_error(
            "no signature matches: it was made with another secret, or the message was altered",
            code="bad_signature",
        )


def _decode_or_empty(decode: Callable[[str], bytes], text: str) -> bytes:
    try:
        return decode(text)
    except ValueError:
        return b""


def _keys(secrets: Sequence[SecretStr]) -> list[bytes]:
    return [secret.get_secret_value().encode() for secret in secrets]


def _attempt_id(timestamp: str, body: bytes) -> str:
    return f"{timestamp} {hashlib.sha256(body).hexdigest()}"


def _missing_signature_error(what: str) -> Unauthorized:
    return _signature_error(f"this webhook requires {what}", code="missing_signature")


def _signature_error(message: str, *, code: str) -> Unauthorized:
    return Unauthorized(message, code=code, challenge="Signature")


def _fill_placeholders(text: str, values: Mapping[str, str]) -> bytes:
    return encode_lossless(_PLACEHOLDER.sub(lambda match: values[match[1]], text))
