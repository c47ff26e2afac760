"""How a webhook proves who sent it: ``sources.<name>.verify``."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, SecretStr

from gateway.config.model import patterns
from gateway.config.model.section import Section, preset
from gateway.config.model.units import Duration, Expressed, Secret, fault, secret_schema

METHODS = (
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
        raise fault("is empty; a variable that holds it may be unset")
    return secret


def _standard(secret: SecretStr) -> SecretStr:
    try:
        key = standard_key(secret.get_secret_value())
    except ValueError:
        raise fault("must be whsec_ and base64, as the sender shows it") from None
    if not 24 <= len(key) <= 64:
        raise fault(f"holds {len(key)} bytes; Standard Webhooks asks for 24 to 64")
    return secret


def standard_key(text: str) -> bytes:
    """Return the key in a Standard Webhooks secret, with or without its prefix. Raises ValueError."""
    try:
        text = text.removeprefix("whsec_").rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _user(secret: SecretStr) -> SecretStr:
    user, colon, password = secret.get_secret_value().partition(":")
    if not (user and colon and password):
        raise fault("must be user:password")
    return secret


Given = Annotated[Secret, AfterValidator(_not_empty), secret_schema(r"[\s\S]+")]
Standard = Annotated[
    Secret, AfterValidator(_standard), secret_schema(r"(?:whsec_)?[A-Za-z0-9+/]{32,86}={0,2}")
]
User = Annotated[Secret, AfterValidator(_user), secret_schema(r"[^:]+:[\s\S]+")]


_HMAC_RULES: dict[str, Any] = {
    "allOf": [
        {"properties": {"content": patterns.text(r"[\s\S]*\{body\}[\s\S]*")}},
        {"properties": {"content": patterns.text(r"(?:[^{}]|\{(?:body|id|timestamp)\})+")}},
        *(
            {
                "if": {
                    "properties": {"content": {"pattern": rf"\{{{place}\}}"}},
                    "required": ["content"],
                },
                "then": patterns.given(f"{place}_header"),
                "else": {"not": patterns.given(f"{place}_header")},
            }
            for place in ("id", "timestamp")
        ),
    ]
}


class Hmac(Section):
    """A signature of any sender that makes one with a shared secret."""

    model_config = ConfigDict(json_schema_extra=_HMAC_RULES)

    secrets: list[Given] = Field(min_length=1, description="several allow rotation")
    header: str = Field(description="where the signature is, such as X-Signature")
    algorithm: Literal["sha256", "sha1", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = Field("", description="before the signature in its header, such as sha256=")
    content: Expressed = preset(
        "{body}", "what is signed; may hold {body}, {id} and {timestamp}: 'v0:{timestamp}:{body}'"
    )
    id_header: str | None = Field(
        None, description="names the message, and none is taken twice; content must hold {id}"
    )
    timestamp_header: str | None = Field(
        None, description="unix seconds, checked against tolerance; content must hold {timestamp}"
    )


class Verify(Section):
    """How a webhook proves who sent it: exactly one way. Several secrets allow rotation."""

    model_config = ConfigDict(
        json_schema_extra={"allOf": [{"oneOf": [patterns.given(name) for name in METHODS]}]}
    )

    standard_webhooks: list[Standard] | None = Field(
        None, min_length=1, description="https://www.standardwebhooks.com, and Svix: whsec_…"
    )
    github: list[Given] | None = Field(None, min_length=1, description="X-Hub-Signature-256")
    stripe: list[Given] | None = Field(None, min_length=1, description="Stripe-Signature: whsec_… as it is")
    hmac: Hmac | None = None
    bearer: list[Given] | None = Field(None, min_length=1, description="Authorization: Bearer <token>")
    basic: list[User] | None = Field(None, min_length=1, description="Authorization: Basic, as user:password")
    access_token: list[Given] | None = Field(
        None, min_length=1, description="?access_token=<token>, or Authorization: Bearer <token>"
    )
    client_certificate: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="names, of which the client's certificate must have one; needs server.tls.client_ca",
    )
    none: Literal[True] | None = Field(None, description="accept everybody who can reach the port")
    tolerance: Duration = preset("5m", "how far a signed timestamp may be off")
