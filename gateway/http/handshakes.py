"""TLS handshakes that fail: counted, and never a line each; event loops tell them nowhere."""

import ssl
import time

import structlog

from gateway.metrics import Metrics

log = structlog.get_logger("gateway.http")

TELL_SECONDS = 60.0
"""How often one cause of a refused client certificate is told."""

_HTTP = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class Handshakes:
    """Counts what fails. ``observed`` is what contexts make of each connection."""

    def __init__(self, metrics: Metrics) -> None:
        self._failures = metrics.tls_handshake_failures
        self._told: dict[int, float] = {}  # by OpenSSL's codes, of which there are a hundred
        handshakes = self

        class Observed(ssl.SSLObject):
            def do_handshake(self) -> None:
                try:
                    super().do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise
                except ssl.SSLError as error:
                    handshakes.failed(error)
                    raise

        self.observed: type[ssl.SSLObject] = Observed

    def failed(self, error: ssl.SSLError) -> None:
        """Count a failure, and tell a refused certificate once a minute: its sender needs an answer."""
        if isinstance(error, ssl.SSLCertVerificationError):
            self._failures.labels("client_certificate").inc()
            now = time.monotonic()
            if now >= self._told.get(error.verify_code, 0.0):
                self._told[error.verify_code] = now + TELL_SECONDS
                log.warning("client_certificate_refused", error=error.verify_message)
        else:
            self._failures.labels("plain_http" if error.reason in _HTTP else "protocol").inc()
