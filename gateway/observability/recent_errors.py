"""Keeps the newest errors and refusals, which ``/status`` and the console show."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import msgspec

from gateway.core.bounded_dict import bounded_key
from gateway.core.clock import unix_ms

MAX_ERRORS = 50
"""Entries that are kept; the one without a new occurrence for the longest time is dropped first."""

MAX_TEXT_CHARS = 500
"""Characters of each text that are kept."""


class RecentError(msgspec.Struct):
    """All errors of one kind, code and cause."""

    kind: str
    """``stream``, ``source``, ``hook`` or ``admin``."""
    code: str
    reason: str
    source: str | None = None
    origin: str | None = None
    client: str | None = None
    times: int = 0
    at_ms: int = 0
    """When it last happened, in unix milliseconds."""


class RecentErrors:
    """Bounded, and cheap enough for a flood: repeated errors of one cause are one entry."""

    def __init__(self, clock: Callable[[], int] = unix_ms) -> None:
        self._clock = clock
        self._errors_by_cause: OrderedDict[Hashable, RecentError] = OrderedDict()

    def record(self, cause: Hashable, error: RecentError) -> None:
        """Add an error. ``cause`` distinguishes it from others of its kind: a page, an address, a source."""
        key = (error.kind, error.code, bounded_key(cause) if isinstance(cause, str) else cause)
        for name in ("reason", "source", "origin", "client"):
            text = getattr(error, name)
            if text is not None and len(text) > MAX_TEXT_CHARS:
                setattr(error, name, text[:MAX_TEXT_CHARS])
        known = self._errors_by_cause.pop(key, None)
        error.times = 1 if known is None else known.times + 1
        error.at_ms = self._clock()
        self._errors_by_cause[key] = error
        if len(self._errors_by_cause) > MAX_ERRORS:
            self._errors_by_cause.popitem(last=False)

    def list_newest(self) -> list[RecentError]:
        """Return the entries, the newest first."""
        return list(reversed(self._errors_by_cause.values()))
