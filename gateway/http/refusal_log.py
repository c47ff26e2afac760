"""Refused requests: what `/status` shows of them, and how often the log mentions them."""

from collections.abc import Hashable

from gateway.core.errors import GatewayError
from gateway.observability.log_throttle import LogThrottle
from gateway.observability.recent_errors import RecentError, RecentErrors


class RefusalLog:
    """Remembers refused requests of one kind (``stream``, ``hook``, ``admin``), and throttles their log."""

    def __init__(self, kind: str, recent_errors: RecentErrors) -> None:
        self._kind = kind
        self._recent_errors = recent_errors
        self._throttle = LogThrottle()

    def record(
        self,
        error: GatewayError,
        cause: str | None,
        *,
        throttle_key: Hashable = None,
        source: str | None = None,
        origin: str | None = None,
        client: str | None = None,
    ) -> int | None:
        """Remember a refusal. ``cause`` is the page, address or source that it is counted for.

        Returns how many refusals a log line now stands for, or None if there should be no line. Each error
        code gets one a minute for each ``throttle_key``, by default the cause.
        """
        recent = RecentError(self._kind, error.code, error.message, source, origin=origin, client=client)
        self._recent_errors.record(cause, recent)
        return self._throttle.should_log((error.code, cause if throttle_key is None else throttle_key))
