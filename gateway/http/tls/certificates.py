"""Reloads the public port's certificate when its files change, and warns before it expires.

The files are polled every `POLL_SECONDS` rather than watched: polling sees an atomic swap of symlinks, as
Kubernetes does for a Secret, on every file system. If the new files cannot be used, the old certificate
stays in use, one log line says why, and the files are tried again until they are valid, so a certificate
may be written before its key.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import structlog

from gateway.config.model.tls import TlsConfig
from gateway.core.errors import StartupError
from gateway.http.tls.context import LoadedCertificate, RotatingSSLContext, load_certificate
from gateway.http.tls.handshake_errors import HandshakeErrors
from gateway.observability.file_fingerprint import FileFingerprint, file_fingerprint
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

log = structlog.get_logger("gateway.http")

POLL_SECONDS = 2.0
"""Seconds between two looks at the files."""

EXPIRY_WARNING_SECONDS = 14 * 86400.0
"""Seconds before its expiry from which a certificate is warned about; at most a quarter of its lifetime."""

Validity = Literal["good", "soon", "expired", "early"]


class CertificateWatcher:
    """Watches the files of ``server.tls``. ``context`` serves new connections with the newest valid ones."""

    def __init__(
        self,
        tls: TlsConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        """Load the files. Raises StartupError if one cannot be used."""
        self._background = background
        self._tls = tls
        self.handshake_failures = metrics.tls_handshake_failures
        self._reload_counter = metrics.tls_reloads
        self._clock = clock
        self._handshake_errors = HandshakeErrors(metrics)
        self._file_fingerprints = self._read_fingerprints()
        self._logged_validity: Validity = "good"
        self._last_error = ""
        self._task: asyncio.Task[None] | None = None
        self.context = RotatingSSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._activate(load_certificate(tls))

    @property
    def expires_at(self) -> float:
        """When the certificate in use ends (unix seconds)."""
        return self._loaded.valid_until

    def reconfigure(self, tls: TlsConfig, loaded: LoadedCertificate) -> None:
        """Use other files, or other rules for handshakes, for new connections."""
        if tls != self._tls:
            self._tls = tls
            self._file_fingerprints, self._last_error = self._read_fingerprints(), ""
            self._activate(loaded)

    def start(self) -> None:
        """Start watching. Needs a running loop."""
        self._log_validity()
        self._task = self._background.start_task("certificate_watcher", self._watch)

    async def stop(self) -> None:
        """Stop watching. Harmless when repeated."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])  # not `await task`: its cancellation must not hide the caller's

    async def reload_if_changed(self) -> None:
        """Load the files if they changed, or could not be used before. Cancelling is safe."""
        # The fingerprints before the files: a change in between is found by the next look.
        files = await asyncio.to_thread(self._read_fingerprints)
        if files != self._file_fingerprints or self._last_error:
            try:
                loaded = await asyncio.to_thread(load_certificate, self._tls)
                self._check_not_worse(loaded)
            except StartupError as error:
                self._report_failure(error.message)
            else:
                self._file_fingerprints = files
                self._activate(loaded)
                self._last_error = ""
                self._reload_counter.labels("ok").inc()
                log.info(
                    "certificate_reloaded",
                    file=self._tls.certificate,
                    expires=_format_date(loaded.valid_until),
                )
        self._log_validity()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.reload_if_changed()
            except Exception as error:
                self._background.record_failure("certificate_watcher", error)

    def _read_fingerprints(self) -> FileFingerprint:
        files = (self._tls.certificate, self._tls.key, self._tls.client_ca)
        return file_fingerprint(file for file in files if file is not None)

    def _activate(self, loaded: LoadedCertificate) -> None:
        loaded.context.sslobject_class = self._handshake_errors.ssl_object_class
        self._loaded = loaded
        self.context.current = loaded.context
        self._logged_validity = "good"

    def _check_not_worse(self, loaded: LoadedCertificate) -> None:
        """Raise StartupError for a certificate that is not valid now while the one in use is."""
        validity = self._validity(loaded)
        if validity in ("expired", "early") and self._validity(self._loaded) not in ("expired", "early"):
            what = f"expired on {_format_date(loaded.valid_until)}"
            if validity == "early":
                what = f"is not valid before {_format_date(loaded.valid_from)}"
            raise StartupError(f"server.tls: {self._tls.certificate} {what}")

    def _report_failure(self, why: str) -> None:
        if why != self._last_error:  # one line and one count per cause, not per look
            self._reload_counter.labels("failed").inc()
            log.error("certificate_not_reloaded", error=why, note="the old certificate stays in use")
        self._last_error = why

    def _validity(self, loaded: LoadedCertificate) -> Validity:
        now = self._clock()
        if now < loaded.valid_from:
            return "early"
        if now >= loaded.valid_until:
            return "expired"
        warning_seconds = min(EXPIRY_WARNING_SECONDS, (loaded.valid_until - loaded.valid_from) / 4)
        return "soon" if loaded.valid_until - now < warning_seconds else "good"

    def _log_validity(self) -> None:
        """Log once when the certificate in use nears its expiry, or is not valid."""
        validity = self._validity(self._loaded)
        if validity != self._logged_validity:
            about = {"file": self._tls.certificate, "expires": _format_date(self._loaded.valid_until)}
            if validity == "soon":
                log.warning("certificate_expires_soon", **about)
            elif validity == "expired":
                log.error("certificate_expired", **about, note="clients refuse it")
            elif validity == "early":
                log.error("certificate_not_yet_valid", **about, begins=_format_date(self._loaded.valid_from))
        self._logged_validity = validity


def _format_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
