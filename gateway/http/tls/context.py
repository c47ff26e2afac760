"""TLS of the public port: what the files make, and one context that goes over to newer ones."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from gateway.config.model.tls import TlsConfig
from gateway.core.errors import StartupError
from gateway.net.pem import load_ca_file, load_certificate_and_key

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """What the files held: a context, and the time (unix seconds) in which its certificate is good."""

    context: ssl.SSLContext
    valid_from: float
    valid_until: float


class RotatingSSLContext(ssl.SSLContext):
    """A server's context that gives each new connection to ``current``.

    Event loops keep the context that they were started with, and call ``wrap_bio`` of it once for each
    connection. So the certificate of new connections changes with one assignment, and those that are open,
    or in their handshake, keep theirs (docs/decisions/0011).
    """

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS side of a new connection."""
        return self.current.wrap_bio(*arguments, **options)


def load_certificate(tls: TlsConfig) -> LoadedCertificate:
    """Return what the files hold now. Raises StartupError where one cannot be used. Blocks on the disk."""
    # Not create_default_context: what that one asks of certificates differs between Python's versions.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.minimum_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(tls.ciphers)
    context.set_alpn_protocols(["http/1.1"])
    for part, message in load_certificate_and_key(context, tls.certificate, tls.key):
        raise StartupError(f"server.tls.{part}: {message}")
    try:
        leaf = x509.load_pem_x509_certificates(Path(tls.certificate).read_bytes())[0]
    except (OSError, ValueError) as error:
        raise StartupError(f"server.tls.certificate: {tls.certificate}: {error}") from None
    if tls.client_ca is not None:
        for _, message in load_ca_file(context, tls.client_ca):
            raise StartupError(f"server.tls.client_ca: {message}")
        # Browsers on the same port have none. One that is given must be good, or the handshake ends.
        context.verify_mode = ssl.CERT_OPTIONAL
    return LoadedCertificate(
        context, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    )
