"""Counts failed TLS handshakes, which event loops report nowhere."""

import ssl

import structlog

from gateway.observability.log_throttle import LogThrottle
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.http")

_PLAIN_HTTP_REASONS = ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class HandshakeErrors:
    """Counts failed handshakes of contexts that have `ssl_object_class` as their ``sslobject_class``."""

    def __init__(self, metrics: Metrics) -> None:
        self._failures = metrics.tls_handshake_failures
        self._log_throttle = LogThrottle()
        handshakes = self

        class Observed(ssl.SSLObject):
            def do_handshake(self) -> None:
                try:
                    super().do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise
                except ssl.SSLError as error:
                    handshakes.count_error(error)
                    raise

        self.ssl_object_class: type[ssl.SSLObject] = Observed

    def count_error(self, error: ssl.SSLError) -> None:
        """Count a failure, and log each kind of refused certificate once a minute: its owner will ask why."""
        if isinstance(error, ssl.SSLCertVerificationError):
            self._failures.labels("client_certificate").inc()
            times = self._log_throttle.should_log(error.verify_code)
            if times is not None:
                log.warning("client_certificate_refused", error=error.verify_message, times=times)
        else:
            self._failures.labels("plain_http" if error.reason in _PLAIN_HTTP_REASONS else "protocol").inc()
