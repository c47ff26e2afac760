"""The certificate of the public port over time: new files are taken up, expiry is told.

Files are looked at every `POLL_SECONDS`, and not watched: an atomic swap of symlinks, as Kubernetes does with
the folder of a Secret, is seen in the files that the paths lead to, on every file system. A certificate that
cannot be used changes nothing: the old one goes on, one line tells why, and the files are tried again
until they are good, so that a certificate may be written before its key.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import structlog

from gateway.config.model.tls import Tls
from gateway.core.errors import StartupError
from gateway.http.tls.context import Loaded, Rotating, load
from gateway.http.tls.handshake_errors import Handshakes
from gateway.observability.background import UNCOUNTED, Background
from gateway.observability.file_fingerprint import Looks, look
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.http")

POLL_SECONDS = 2.0
"""How often the files are looked at."""

SOON_SECONDS = 14 * 86400.0
"""How long before its end a certificate is warned about; at most a quarter of its life."""

Age = Literal["good", "soon", "expired", "early"]


class Certificates:
    """The files of ``server.tls``, and the context of whoever connects now."""

    def __init__(
        self,
        tls: Tls,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
        background: Background = UNCOUNTED,
    ) -> None:
        """Load the files. Raises StartupError, with one line, where one cannot be used."""
        self._background = background
        self._tls = tls
        self._reloads = metrics.tls_reloads
        self._now = now
        self._handshakes = Handshakes(metrics)
        self._files = self._looks()
        self._told_age: Age = "good"
        self._fault = ""
        self._task: asyncio.Task[None] | None = None
        self.context = Rotating(ssl.PROTOCOL_TLS_SERVER)
        self._use(load(tls))

    @property
    def expires(self) -> float:
        """When the certificate in use ends (unix seconds)."""
        return self._loaded.ends

    def crowded(self) -> None:
        """Count a handshake that found no place, or lost it to another address's."""
        self._handshakes.crowded()

    @staticmethod
    def load(tls: Tls) -> Loaded:
        """Return what other files hold, for `reconfigure`. Raises StartupError. Blocks on the disk."""
        return load(tls)

    def reconfigure(self, tls: Tls, loaded: Loaded) -> None:
        """Go over to other files, or other rules of a handshake, for connections that come from now on."""
        if tls != self._tls:
            self._tls = tls
            self._files, self._fault = self._looks(), ""
            self._use(loaded)

    def start(self) -> None:
        """Begin to watch. Needs a running loop."""
        self._tell_age()
        self._task = self._background.start("certificates", self._watch)

    async def stop(self) -> None:
        """End the watch; harmless when repeated."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])  # not `await task`: its cancellation must not hide the caller's

    async def look(self) -> None:
        """Take the files up if they changed, or could not be used before. Cancelling is safe."""
        files = await asyncio.to_thread(self._looks)  # before they are read: a later change is seen later
        if files != self._files or self._fault:
            try:
                loaded = await asyncio.to_thread(load, self._tls)
                self._refuse_worse(loaded)
            except StartupError as error:
                self._failed(error.message)
            else:
                self._files = files
                self._use(loaded)
                self._fault = ""
                self._reloads.labels("ok").inc()
                log.info("certificate_reloaded", file=self._tls.certificate, expires=_date(loaded.ends))
        self._tell_age()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.look()
            except Exception as error:
                self._background.failed("certificates", error)

    def _looks(self) -> Looks:
        files = (self._tls.certificate, self._tls.key, self._tls.client_ca)
        return look(file for file in files if file is not None)

    def _use(self, loaded: Loaded) -> None:
        loaded.context.sslobject_class = self._handshakes.observed
        self._loaded = loaded
        self.context.current = loaded.context
        self._told_age = "good"

    def _refuse_worse(self, loaded: Loaded) -> None:
        """Raise StartupError for a certificate that is not good while the one in use is."""
        age = self._age(loaded)
        if age in ("expired", "early") and self._age(self._loaded) not in ("expired", "early"):
            what = f"expired on {_date(loaded.ends)}"
            if age == "early":
                what = f"is not valid before {_date(loaded.begins)}"
            raise StartupError(f"server.tls: {self._tls.certificate} {what}")

    def _failed(self, why: str) -> None:
        if why != self._fault:  # one line and one count per cause, not per look
            self._reloads.labels("failed").inc()
            log.error("certificate_not_reloaded", error=why, note="the old one goes on")
        self._fault = why

    def _age(self, loaded: Loaded) -> Age:
        now = self._now()
        if now < loaded.begins:
            return "early"
        if now >= loaded.ends:
            return "expired"
        return "soon" if loaded.ends - now < min(SOON_SECONDS, (loaded.ends - loaded.begins) / 4) else "good"

    def _tell_age(self) -> None:
        """Write one line when the certificate in use gets old."""
        age = self._age(self._loaded)
        if age != self._told_age:
            about = {"file": self._tls.certificate, "expires": _date(self._loaded.ends)}
            if age == "soon":
                log.warning("certificate_expires_soon", **about)
            elif age == "expired":
                log.error("certificate_expired", **about, note="clients refuse it")
            elif age == "early":
                log.error("certificate_not_yet_valid", **about, begins=_date(self._loaded.begins))
        self._told_age = age


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
