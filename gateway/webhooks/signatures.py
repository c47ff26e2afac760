"""Who sent a webhook: signatures over the body's bytes, and tokens. Pure; compares in constant time.

Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
GitHub: https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries (neither the delivery
id nor a time is signed). Stripe: https://docs.stripe.com/webhooks#verify-manually.
Basic: RFC 7617. Bearer: RFC 6750.
"""

import base64
import binascii
import hashlib
import hmac
import re
import ssl
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import SecretStr

from gateway.config.model.verify import HmacConfig, VerifyConfig, decode_standard_webhooks_key
from gateway.config.placeholders import resolve_json_pointer
from gateway.core.errors import Unauthorized, Unavailable
from gateway.core.event import encode_lossless
from gateway.webhooks.formats.base import WebhookResponse

# What a verified client certificate says of who has it. Pure.

PeerCertificate = Mapping[str, Any]
"""As `ssl.SSLSocket.getpeercert` gives it; empty or None where the client had none."""

_NAME_KINDS = ("DNS", "URI", "email")


def certificate_names(certificate: PeerCertificate) -> frozenset[str]:
    """Return the names: those of the subjectAltName, or the common name where there is none.

    RFC 6125 §6.4.4: an authority that gives alternative names vouches for those, and not for a common name.
    """
    alternatives = certificate.get("subjectAltName", ())
    if alternatives:
        return frozenset(name for kind, name in alternatives if kind in _NAME_KINDS)
    common = [
        name for group in certificate.get("subject", ()) for kind, name in group if kind == "commonName"
    ]
    return frozenset(common) if len(common) == 1 else frozenset()


def certificate_expiry(certificate: PeerCertificate) -> float:
    """Return when it ends (unix seconds)."""
    return ssl.cert_time_to_seconds(certificate["notAfter"])


MAX_REMEMBERED_MESSAGES = 100_000
"""Messages of one source that are remembered, so that none is taken twice."""

MAX_REMEMBERED_RESPONSE_BYTES = 512
"""Longest answer that is remembered with its message; a message with a longer one is looked up in the log."""

MAX_SIGNATURES = 16
"""Signatures in one header that are looked at."""

_STRIPE_PART = re.compile(r"\s*(t|v1)\s*=\s*([^,\s]*)\s*")
_PLACEHOLDER = re.compile(r"\{(id|timestamp)\}")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)

Headers = Mapping[str, str]
"""By names in lower case."""


class VerifiedMessage(NamedTuple):
    """What a signature proves, beside the sender."""

    message_id: str | None = None
    """The message's own id, the same on every try."""
    attempt_id: str | None = None
    """What no second message can have. Retries of a sender that signs the time differ in it.

    Where it is, ``id`` is as well: nodes that did not take the message find its events by that in the log.
    """
    event_type: str | None = None


UNIDENTIFIED = VerifiedMessage()


class Verifier(ABC):
    """One way to prove who sent a post. Raises Unauthorized; its words hold no secret."""

    needs_body = True
    has_ambient_credentials = False
    """Whether a browser proves it by itself, for whatever page makes it post."""

    def check_headers(self, headers: Headers, token: str | None) -> None:
        """Check what needs no body, so that a stranger's is never read. ``token`` is ``?access_token=``."""
        return

    def check_certificate(self, certificate: PeerCertificate | None, now: float) -> None:
        """Check what the connection proves: its client's certificate, which TLS has verified."""
        return

    @abstractmethod
    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        """Check the body, which was read; ``now`` is in unix seconds."""


class BearerVerifier(Verifier):
    """``Authorization: Bearer`` or ``?access_token=``: one of several tokens."""

    needs_body = False

    def __init__(self, tokens: Sequence[SecretStr], *, in_query: bool) -> None:
        # Digests, so that the comparison takes the same time whatever the lengths are.
        self._tokens = [_digest(token.get_secret_value()) for token in tokens]
        self._in_query = in_query

    def check_headers(self, headers: Headers, token: str | None) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if not given and self._in_query:
            given = token or ""
        if not given:
            hint = ", or ?access_token=<token>" if self._in_query else ""
            raise Unauthorized(
                f"this webhook wants Authorization: Bearer <token>{hint}", code="missing_token"
            )
        if not _any_equal([_digest(given)], self._tokens):
            raise Unauthorized(
                "the token is not one of this webhook's",
                code="invalid_token",
                challenge='Bearer error="invalid_token"',
            )

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        return UNIDENTIFIED


class BasicAuthVerifier(Verifier):
    """``Authorization: Basic``: one of several users with their passwords."""

    needs_body = False
    has_ambient_credentials = True

    def __init__(self, users: Sequence[SecretStr]) -> None:
        self._users = [_digest(user.get_secret_value()) for user in users]

    def check_headers(self, headers: Headers, token: str | None) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        challenge = 'Basic realm="webhook", charset="UTF-8"'
        if scheme.lower() != "basic":
            raise Unauthorized(
                "this webhook wants Authorization: Basic", code="missing_token", challenge=challenge
            )
        try:
            user = base64.b64decode(given.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            user = ""
        if not _any_equal([_digest(user)], self._users):
            raise Unauthorized(
                "the user and password are not of this webhook's",
                code="invalid_token",
                challenge=challenge,
            )

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        return UNIDENTIFIED


class ClientCertificateVerifier(Verifier):
    """A client certificate that has one of several names."""

    needs_body = False
    has_ambient_credentials = True

    def __init__(self, allowed_names: Sequence[str]) -> None:
        self._allowed_names = frozenset(allowed_names)

    def check_certificate(self, certificate: PeerCertificate | None, now: float) -> None:
        if not certificate:
            raise _certificate_error("this webhook wants a client certificate", code="missing_certificate")
        if certificate_expiry(certificate) <= now:  # since the handshake: a connection may be kept for long
            raise _certificate_error("the client certificate has expired", code="expired_certificate")
        if not certificate_names(certificate) & self._allowed_names:
            raise _certificate_error(
                "the client certificate has none of this webhook's names", code="unknown_certificate"
            )

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        return UNIDENTIFIED


class StandardWebhooksVerifier(Verifier):
    """Standard Webhooks, and the same by Svix's header names."""

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
        known = [hmac.digest(key, content, hashlib.sha256) for key in self._keys]
        given = [part.removeprefix("v1,") for part in signatures.split() if part.startswith("v1,")]
        _check_signature(map(_decode_base64, given[:MAX_SIGNATURES]), known)
        return VerifiedMessage(id, f"{id} {timestamp}")


class GitHubVerifier(Verifier):
    """``X-Hub-Signature-256``; the event's name is its type, the delivery its id."""

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._keys = [secret.get_secret_value().encode() for secret in secrets]

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        signature = headers.get("x-hub-signature-256", "")
        if not signature.startswith("sha256="):
            raise _missing_signature_error("the header X-Hub-Signature-256")
        known = [hmac.digest(key, body, hashlib.sha256) for key in self._keys]
        _check_signature([_decode_hex(signature[7:])], known)
        delivery = headers.get("x-github-delivery")
        return VerifiedMessage(delivery, delivery, headers.get("x-github-event"))


class StripeVerifier(Verifier):
    """``Stripe-Signature: t=…,v1=…``."""

    def __init__(self, secrets: Sequence[SecretStr], tolerance: float) -> None:
        self._keys = [secret.get_secret_value().encode() for secret in secrets]
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
        known = [hmac.digest(key, content, hashlib.sha256) for key in self._keys]
        _check_signature(map(_decode_hex, given[:MAX_SIGNATURES]), known)
        # The header may be reordered, the body and the time may not.
        once = _attempt_id(timestamp, body)
        return VerifiedMessage(
            resolve_json_pointer(body, "/id") or once, once, resolve_json_pointer(body, "/type")
        )


class HmacVerifier(Verifier):
    """Any HMAC over the body, or over a text around it."""

    def __init__(self, config: HmacConfig, tolerance: float) -> None:
        self._keys = [secret.get_secret_value().encode() for secret in config.secrets]
        self._header, self._signature_prefix = config.header.lower(), config.prefix
        self._algorithm = config.algorithm
        self._decode: Callable[[str], bytes] = _decode_hex if config.encoding == "hex" else _decode_base64
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
        known = [hmac.digest(key, content, self._algorithm) for key in self._keys]
        _check_signature([self._decode(signature.removeprefix(self._signature_prefix))], known)
        if "id" in values:
            return VerifiedMessage(values["id"], " ".join(values.values()))
        once = _attempt_id(values["timestamp"], body) if "timestamp" in values else None
        return VerifiedMessage(once, once)


class AllowAllVerifier(Verifier):
    """``none: true``: where the browser stands in the network is all that it asks for."""

    needs_body = False
    has_ambient_credentials = True

    def verify_message(self, headers: Headers, body: bytes, now: float) -> VerifiedMessage:
        return UNIDENTIFIED


def build_verifier(config: VerifyConfig) -> Verifier:
    """Return what checks the posts of a source."""
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


class HandledMessage(NamedTuple):
    """What became of a message that was taken."""

    response: WebhookResponse | None
    """None where it is too long to be held."""
    event_count: int


class IdempotencyCache:
    """Messages that were taken, with their answers, so that a repeated one makes no second event.

    The log deduplicates them as well, on every node. It may have forgotten a message while this node has not,
    and its timestamp is still tolerated. Forgets the oldest of `MAX_REMEMBERED_MESSAGES`.
    """

    def __init__(self) -> None:
        self._messages: OrderedDict[bytes, HandledMessage | None] = (
            OrderedDict()
        )  # None while it is being taken

    def begin(self, message: VerifiedMessage) -> HandledMessage | None:
        """Return what became of a message, or take it up: then `end` must follow.

        Raises Unavailable while it is being taken.
        """
        if message.attempt_id is None:
            return None
        key = _digest(message.attempt_id)
        if key in self._messages:
            answered = self._messages[key]
            if answered is None:
                raise Unavailable("this message is being taken just now", retry_after=1)
            if answered.response is not None:
                return answered
        self._messages[key] = None
        if len(self._messages) > MAX_REMEMBERED_MESSAGES:
            self._messages.popitem(last=False)
        return None

    def finish(
        self, message: VerifiedMessage, response: WebhookResponse | None, event_count: int = 0
    ) -> None:
        """Hold what was answered; None: it is not in the log, and may be tried again as it is."""
        if message.attempt_id is None:
            return
        if response is None:
            self._messages.pop(_digest(message.attempt_id), None)
        else:
            held = response if len(response.body) <= MAX_REMEMBERED_RESPONSE_BYTES else None
            self._messages[_digest(message.attempt_id)] = HandledMessage(held, event_count)


def _check_timestamp(text: str, now: float, tolerance: float) -> None:
    if not _UNIX_SECONDS.fullmatch(text):
        raise _signature_error("the timestamp is not in unix seconds", code="bad_signature")
    off = now - int(text)
    if abs(off) > tolerance:
        way = "old" if off > 0 else "in the future"
        raise _signature_error(
            f"the timestamp is {abs(off):.0f} s {way}; {tolerance:g} s are tolerated",
            code="expired_signature",
        )


def _check_signature(given: Iterable[bytes], known: Sequence[bytes]) -> None:
    if not _any_equal(given, known):
        raise _signature_error(
            "the signature is not made with a secret of this webhook, or the message was altered",
            code="bad_signature",
        )


def _any_equal(given: Iterable[bytes], known: Sequence[bytes]) -> bool:
    # Every pair is compared, so that the time does not tell which one was near.
    equal = [hmac.compare_digest(one, other) for one in given for other in known]
    return any(equal)


def _attempt_id(timestamp: str, body: bytes) -> str:
    return f"{timestamp} {hashlib.sha256(body).hexdigest()}"


def _missing_signature_error(what: str) -> Unauthorized:
    return _signature_error(f"this webhook wants {what}", code="missing_signature")


def _signature_error(message: str, *, code: str) -> Unauthorized:
    return Unauthorized(message, code=code, challenge="Signature")


def _certificate_error(message: str, *, code: str) -> Unauthorized:
    return Unauthorized(message, code=code, challenge="Certificate")


def _fill_placeholders(text: str, values: Mapping[str, str]) -> bytes:
    return encode_lossless(_PLACEHOLDER.sub(lambda match: values[match[1]], text))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _decode_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
