"""An issuer's published keys: fetched, held, fetched again in the background.

What was fetched stays in use while the issuer cannot be reached. A token that names a key which nobody knows
makes one more fetch, at most one in `UNKNOWN_KEY_INTERVAL_SECONDS`, however many such tokens come.
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
"""How often keys are fetched, jittered: a key that the issuer withdrew is taken for so long."""

UNKNOWN_KEY_INTERVAL_SECONDS = 10.0
"""Least time between two fetches that tokens of unknown keys cause."""

FETCH_TIMEOUT_SECONDS = 5.0
"""How long one fetch may take."""


class JwksClient:
    """The keys at one URL. `run` keeps them; cancel it to stop."""

    def __init__(
        self,
        config: JwtConfig,
        http_session: Callable[[], aiohttp.ClientSession],
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        """``on_change`` is called when the keys differ from those before."""
        assert config.jwks_url is not None
        self.config = config
        self._url = config.jwks_url
        self._display_url = redact_url(config.jwks_url)
        self._algorithms = config.algorithms
        self._http_session = http_session
        self._metrics = metrics
        self._on_change = on_change
        self._keys: Sequence[VerificationKey] | None = None
        self._document: object = None
        self._fetch_task: asyncio.Task[bool] | None = None
        self._last_unknown_fetch = -UNKNOWN_KEY_INTERVAL_SECONDS
        self._logged_error = ""
        self.first_fetch_done = asyncio.Event()
        """Set once the first fetch is over, well or not."""
        self.fetched_at: float | None = None
        """Unix seconds of the last fetch that worked."""

    async def run(self) -> None:
        """Fetch now and then, for ever."""
        backoff = Backoff(base_seconds=0.5, cap_seconds=10.0)
        try:
            while True:
                is_well = await asyncio.shield(self._start_fetch())
                self.first_fetch_done.set()
                if is_well:
                    backoff.reset()
                await asyncio.sleep(
                    jittered(REFRESH_INTERVAL_SECONDS, 0.1) if is_well else backoff.next_delay()
                )
        finally:
            if self._fetch_task is not None:
                self._fetch_task.cancel()

    def find_key(self, id: str | None, algorithm: str) -> VerificationKey | None:
        """Return the key that a token names; without a name, the only one that it could mean."""
        found = [key for key in self._keys or () if key.supports(algorithm) and id in (None, key.id)]
        return found[0] if found and (id is not None or len(found) == 1) else None

    async def fetch_missing(self, id: str | None, algorithm: str) -> None:
        """Fetch for a token of an unknown key. Cancelling is safe.

        Raises Unavailable while there are no keys, and where the last fetch was just now: the key may be new,
        and a 401 would end a browser's EventSource for good.
        """
        is_fresh = (
            self._fetch_task is not None
            or time.monotonic() - self._last_unknown_fetch >= UNKNOWN_KEY_INTERVAL_SECONDS
        )
        if is_fresh:
            self._last_unknown_fetch = time.monotonic()
            await asyncio.shield(self._start_fetch())
        if self._keys is None or (not is_fresh and self.find_key(id, algorithm) is None):
            raise Unavailable("the issuer's keys cannot be had just now", code="auth_unavailable")

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
        except Exception as error:  # whatever a library makes of a strange answer must not end the asking
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
            self._on_change()
        return True

    def _record_failure(self, why: str) -> None:
        self._metrics.jwks_fetches.labels("failed").inc()
        if why != self._logged_error:  # one line when it breaks, and one whenever the cause changes
            log.error(
                "jwks_down", url=self._display_url, error=why, has_keys=self._keys is not None, retrying=True
            )
        self._logged_error = why
