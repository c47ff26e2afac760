"""TLS of the public port: ``server.tls``."""

import ssl
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.config.model.paths import File
from gateway.config.model.section import Section
from gateway.config.model.value_types import config_value_error


def _ciphers(value: Any) -> Any:
    """Check an OpenSSL cipher string; OpenSSL itself ignores unknown names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for part in str(value).split(":"):
        name = part.lstrip("!-+")
        if not name.startswith("@") and not _is_supported(context, name):
            shown = repr(name) if len(name) <= 80 else f"of {len(name)} characters"
            raise config_value_error(
                f"OpenSSL knows no cipher {shown}; openssl ciphers -s -tls1_2 -v lists them"
            )
    if not _is_supported(context, str(value)):
        raise config_value_error("leaves no cipher; name at least one, such as ECDHE+AESGCM")
    return value


def _is_supported(context: ssl.SSLContext, text: str) -> bool:
    try:
        context.set_ciphers(text)
    except ssl.SSLError:
        return False
    return True


class TlsConfig(Section):
    """Certificate of the public port."""

    certificate: File = Field(description="PEM file with the certificate and its chain")
    key: File = Field(description="PEM file with the private key, without a password")
    minimum_version: Literal["1.2", "1.3"] = Field("1.2", description="oldest TLS version that is accepted")
    ciphers: Annotated[str, BeforeValidator(_ciphers)] = Field(
        "ECDHE+AESGCM:ECDHE+CHACHA20",
        description="for TLS 1.2, in OpenSSL's syntax; all of TLS 1.3 are secure",
    )
    client_ca: File | None = Field(
        None,
        description="PEM file of the CA of senders' certificates: clients are asked for a certificate, which"
        " only sources with verify.client_certificate require",
    )
