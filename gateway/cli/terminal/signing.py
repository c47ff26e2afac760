"""Signs test posts: the counterpart of `gateway.webhooks.signatures`. Pure."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from uuid import uuid4

from gateway.config.model.verify import HmacConfig, VerifyConfig, decode_standard_webhooks_key


class CannotSign(ValueError):
    """The configuration holds no credential that the source accepts; the message says what it needs."""


def verification_method(verify: VerifyConfig) -> str:
    """Return the key of ``verify`` by which a source's posts are verified."""
    return next(name for name in type(verify).model_fields if name != "tolerance" and getattr(verify, name))


def check_can_sign(verify: VerifyConfig) -> None:
    """Raise CannotSign for a source whose credentials are not in the configuration."""
    if verify.client_certificate:
        raise CannotSign(
            "requires a client certificate, whose key is not in the configuration: post with curl --cert"
        )


def signature_headers(
    verify: VerifyConfig, body: bytes, now: float, type_: str | None, key: str | None = None
) -> Mapping[str, str]:
    """Return the headers that authenticate a post. Of several secrets the first signs.

    ``now`` is in unix seconds. ``key`` is the message id, for signatures that have one. Raises CannotSign.
    """
    check_can_sign(verify)
    id, seconds = key or f"msg_{uuid4().hex}", str(int(now))
    if verify.standard_webhooks:
        secret = decode_standard_webhooks_key(verify.standard_webhooks[0].get_secret_value())
        signature = base64.b64encode(_hmac_sha256(secret, f"{id}.{seconds}.".encode() + body)).decode()
        return {"webhook-id": id, "webhook-timestamp": seconds, "webhook-signature": f"v1,{signature}"}
    if verify.github:
        signature = _hmac_sha256(verify.github[0].get_secret_value().encode(), body).hex()
        signed = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": id}
        return signed | ({"X-GitHub-Event": type_} if type_ else {})
    if verify.stripe:
        secret = verify.stripe[0].get_secret_value().encode()
        return {
            "Stripe-Signature": f"t={seconds},v1={_hmac_sha256(secret, f'{seconds}.'.encode() + body).hex()}"
        }
    if verify.hmac:
        return _hmac_headers(verify.hmac, body, id, seconds)
    if verify.basic:
        user = base64.b64encode(verify.basic[0].get_secret_value().encode()).decode()
        return {"Authorization": f"Basic {user}"}
    tokens = verify.bearer or verify.access_token
    return {"Authorization": f"Bearer {tokens[0].get_secret_value()}"} if tokens else {}


def _hmac_headers(config: HmacConfig, body: bytes, id: str, seconds: str) -> Mapping[str, str]:
    before, _, after = config.content.partition("{body}")
    content = b"".join(
        part if isinstance(part, bytes) else part.replace("{id}", id).replace("{timestamp}", seconds).encode()
        for part in (before, body, after)
    )
    made = hmac.digest(config.secrets[0].get_secret_value().encode(), content, config.algorithm)
    text = made.hex() if config.encoding == "hex" else base64.b64encode(made).decode()
    signed = {config.header: config.prefix + text}
    if config.id_header:
        signed[config.id_header] = id
    if config.timestamp_header:
        signed[config.timestamp_header] = seconds
    return signed


def _hmac_sha256(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)
