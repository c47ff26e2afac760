"""Fetches an issuer's published keys (JWKS) and refreshes them in the background.

Fetched keys stay in use while the issuer cannot be reached. Tokens that name an unknown key cause one more
fetch, at most one in `UNKNOWN_KEY_INTERVAL_SECONDS`, however many there are.
"""

import asyncio
import json
import time
from collections.abc import Callable, Sequence

import aiohttp
import structlog

from gateway.auth.keys import VerificationKey, read_jwks
from gateway.config.model.auth import JwtConfig
from gateway.core.backoff import Backoff, jittered
from gateway.core.errors import Unavailable
from gateway.core.sanitize import redact_url
from gateway.net.http_fetch import FetchError, fetch_json
from gateway.observability.metrics import Metrics

log = structlog.get_logger("gateway.auth")

REFRESH_INTERVAL_SECONDS = 600.0
"""How often keys are fetched, jittered: a withdrawn key is accepted for so long."""

UNKNOWN_KEY_INTERVAL_SECONDS = 10.0
"""Least time between two fetches that are caused by tokens of unknown keys."""

FETCH_TIMEOUT_SECONDS = 5.0
"""How long one fetch may take."""


class JwksClient:
    """The keys at one URL. `run` refreshes them; cancel it to stop."""

    def __init__(
        self,
        config: JwtConfig,
        http_session: Callable[[], aiohttp.ClientSession],
        metrics: Metrics,
    ) -> None:
        assert config.jwks_url is not None
        self.config = config
        self._url = config.jwks_url
        self._display_url = redact_url(config.jwks_url)
        self._algorithms = config.algorithms
        self._http_session = http_session
        self._metrics = metrics
        self.on_change: Callable[[], None] = lambda: None
        """Called when the keys have changed."""
        self._keys: Sequence[VerificationKey] | None = None
        self._document: object = None
        self._fetch_task: asyncio.Task[bool] | None = None
        self._last_unknown_fetch = -UNKNOWN_KEY_INTERVAL_SECONDS
        self._logged_error = ""
        self.first_fetch_done = asyncio.Event()
        """Set once the first fetch has succeeded or failed."""
        self.fetched_at: float | None = None
        """Unix seconds of the last successful fetch."""

    async def run(self) -> None:
        """Fetch the keys again and again."""
        backoff = Backoff(base_seconds=0.5, cap_seconds=10.0)
        try:
            while True:
                is_fetched = await asyncio.shield(self._start_fetch())
                self.first_fetch_done.set()
                if is_fetched:
                    backoff.reset()
                refresh = jittered(REFRESH_INTERVAL_SECONDS, 0.1)
                await asyncio.sleep(refresh if is_fetched else backoff.next_delay())
        finally:
            if self._fetch_task is not None:
                self._fetch_task.cancel()

    def find_key(self, id: str | None, algorithm: str) -> VerificationKey | None:
        """Return the key that a token names; for a token that names none, the only key that fits."""
        found = [key for key in self._keys or () if key.supports(algorithm) and id in (None, key.id)]
        return found[0] if found and (id is not None or len(found) == 1) else None

    async def fetch_missing(self, id: str | None, algorithm: str) -> None:
        """Fetch the keys for a token of an unknown key. Cancelling is safe.

        Raises Unavailable while there are no keys, and if the last fetch was a moment ago: the key may be
        new, and a 401 would end a browser's EventSource for good.
        """
        is_fresh = (
            self._fetch_task is not None
            or time.monotonic() - self._last_unknown_fetch >= UNKNOWN_KEY_INTERVAL_SECONDS
        )
        if is_fresh:
            self._last_unknown_fetch = time.monotonic()
            await asyncio.shield(self._start_fetch())
        if self._keys is None or (not is_fresh and self.find_key(id, algorithm) is None):
            raise Unavailable("the issuer's keys are unavailable", code="auth_unavailable")

    def _start_fetch(self) -> "asyncio.Task[bool]":
        if self._fetch_task is None:
            self._fetch_task = asyncio.create_task(self._fetch_once(), name="fetch keys")
            self._fetch_task.add_done_callback(self._on_fetch_done)
        return self._fetch_task

    def _on_fetch_done(self, _: object) -> None:
        self._fetch_task = None

    async def _fetch_once(self) -> bool:
        try:
            document = await fetch_json(
                self._http_session(), self._url, timeout_seconds=FETCH_TIMEOUT_SECONDS
            )
            keys = read_jwks(document, self._algorithms)
            if not keys:
                raise ValueError(f"holds no key for {', '.join(self._algorithms)}")
        except (FetchError, ValueError) as error:
            self._record_failure(str(error))
            return False
        except Exception as error:  # a library failed on an unusual response: the refresh must go on
            log.exception("jwks_failed", url=self._display_url)
            self._record_failure(type(error).__name__)
            return False
        self._metrics.jwks_fetches.labels("ok").inc()
        if self._logged_error:
            log.info("jwks_up", url=self._display_url)
        self._logged_error = ""
        self.fetched_at = time.time()
        text = json.dumps(document, sort_keys=True)
        if text != self._document:
            self._document, self._keys = text, keys
            self.on_change()
        return True

    def _record_failure(self, why: str) -> None:
        self._metrics.jwks_fetches.labels("failed").inc()
        if why != self._logged_error:  # one line when it breaks, and one whenever the cause changes
            log.error(
                "jwks_down", url=self._display_url, error=why, has_keys=self._keys is not None, retrying=True
            )
        self._logged_error = why
