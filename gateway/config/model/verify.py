"""Authentication of webhook senders: ``sources.<name>.verify``."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, SecretStr

from gateway.config.model import patterns
from gateway.config.model.section import Section, yaml_default
from gateway.config.model.value_types import (
    Duration,
    ExpressionText,
    Secret,
    config_value_error,
    secret_schema,
)

VERIFY_METHODS = (
    "standard_webhooks",
    "github",
    "stripe",
    "hmac",
    "bearer",
    "basic",
    "access_token",
    "client_certificate",
    "none",
)


def _not_empty(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value():
        raise config_value_error("is empty; check the variable that it comes from")
    return secret


def _standard_webhooks_secret(secret: SecretStr) -> SecretStr:
    try:
        key = decode_standard_webhooks_key(secret.get_secret_value())
    except ValueError:
        raise config_value_error("must be whsec_ and base64, as the sender displays it") from None
    if not 24 <= len(key) <= 64:
        raise config_value_error(f"has {len(key)} bytes; Standard Webhooks requires 24 to 64")
    return secret


def decode_standard_webhooks_key(text: str) -> bytes:
    """Return the key in a Standard Webhooks secret, with or without its prefix. Raises ValueError."""
    try:
        text = text.removeprefix("whsec_").rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _user_and_password(secret: SecretStr) -> SecretStr:
    user, colon, password = secret.get_secret_value().partition(":")
    if not (user and colon and password):
        raise config_value_error("must be user:password")
    return secret


NonEmptySecret = Annotated[Secret, AfterValidator(_not_empty), secret_schema(r"[\s\S]+")]
StandardWebhooksSecret = Annotated[
    Secret, AfterValidator(_standard_webhooks_secret), secret_schema(r"(?:whsec_)?[A-Za-z0-9+/]{32,86}={0,2}")
]
UserAndPassword = Annotated[Secret, AfterValidator(_user_and_password), secret_schema(r"[^:]+:[\s\S]+")]


_HMAC_RULES: dict[str, Any] = {
    "allOf": [
        {"properties": {"content": patterns.text_schema(r"[\s\S]*\{body\}[\s\S]*")}},
        {"properties": {"content": patterns.text_schema(r"(?:[^{}]|\{(?:body|id|timestamp)\})+")}},
        *(
            {
                "if": {
                    "properties": {"content": {"pattern": rf"\{{{place}\}}"}},
                    "required": ["content"],
                },
                "then": patterns.requires_keys(f"{place}_header"),
                "else": {"not": patterns.requires_keys(f"{place}_header")},
            }
            for place in ("id", "timestamp")
        ),
    ]
}


class HmacConfig(Section):
    """A signature with a shared secret, in a configurable format."""

    model_config = ConfigDict(json_schema_extra=_HMAC_RULES)

    secrets: list[NonEmptySecret] = Field(min_length=1, description="several allow rotation")
    header: str = Field(description="header with the signature, such as X-Signature")
    algorithm: Literal["sha256", "sha1", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = Field("", description="before the signature in its header, such as sha256=")
    content: ExpressionText = yaml_default(
        "{body}", "the signed text; may have {body}, {id} and {timestamp}: 'v0:{timestamp}:{body}'"
    )
    id_header: str | None = Field(
        None, description="header with the message's id, for deduplication; content must have {id}"
    )
    timestamp_header: str | None = Field(
        None, description="header with unix seconds, checked against tolerance; content must have {timestamp}"
    )


class VerifyConfig(Section):
    """How senders are authenticated: exactly one method. Several secrets allow rotation."""

    model_config = ConfigDict(
        json_schema_extra={"allOf": [{"oneOf": [patterns.requires_keys(name) for name in VERIFY_METHODS]}]}
    )

    standard_webhooks: list[StandardWebhooksSecret] | None = Field(
        None, min_length=1, description="https://www.standardwebhooks.com, and Svix: whsec_…"
    )
    github: list[NonEmptySecret] | None = Field(None, min_length=1, description="X-Hub-Signature-256")
    stripe: list[NonEmptySecret] | None = Field(
        None, min_length=1, description="Stripe-Signature: whsec_… as it is"
    )
    hmac: HmacConfig | None = None
    bearer: list[NonEmptySecret] | None = Field(
        None, min_length=1, description="Authorization: Bearer <token>"
    )
    basic: list[UserAndPassword] | None = Field(
        None, min_length=1, description="Authorization: Basic, as user:password"
    )
    access_token: list[NonEmptySecret] | None = Field(
        None, min_length=1, description="?access_token=<token>, or Authorization: Bearer <token>"
    )
    client_certificate: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="names, one of which must be in the client's certificate; needs server.tls.client_ca",
    )
    none: Literal[True] | None = Field(None, description="accept posts from everybody who can reach the port")
    tolerance: Duration = yaml_default("5m", "largest difference between a signed timestamp and the clock")
