"""TLS contexts of the public port: loading the files, and replacing the context without closing the port."""

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
    """A context, and the time (unix seconds) in which its certificate is valid."""

    context: ssl.SSLContext
    valid_from: float
    valid_until: float


class RotatingSSLContext(ssl.SSLContext):
    """A server's context that delegates each new connection to ``current``.

    Event loops keep the context that they were started with, and call its ``wrap_bio`` once for each
    connection. Assigning ``current`` therefore changes the certificate of new connections only
    (docs/decisions/0011).
    """

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS side of a new connection."""
        return self.current.wrap_bio(*arguments, **options)


def load_certificate(tls: TlsConfig) -> LoadedCertificate:
    """Load the files. Raises StartupError if one cannot be used. Blocks on the disk."""
    # Not create_default_context, whose demands on certificates differ between Python versions.
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
        # Optional, as browsers on the same port have none. An invalid one fails the handshake.
        context.verify_mode = ssl.CERT_OPTIONAL
    return LoadedCertificate(
        context, leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    )
