"""The newest refusals, for people: what `/status` and the console show of them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

import msgspec

from gateway.core.bounded import short
from gateway.core.clock import unix_ms

KEPT = 50
"""Refusals that are remembered; the one that happened last the longest ago is forgotten first."""


SHOWN = 500
"""Characters of each of its texts that are kept."""


class Refusal(msgspec.Struct):
    """Refusals of one kind and one cause, as one."""

    kind: str
    """Of what: ``stream``, ``source``, ``hook`` or ``admin``."""
    code: str
    reason: str
    source: str | None = None
    origin: str | None = None
    client: str | None = None
    times: int = 0
    at_ms: int = 0
    """When it happened last (unix ms)."""


class Refusals:
    """Bounded, and cheap enough for a flood: the same refusal of the same cause is one entry."""

    def __init__(self, clock: Callable[[], int] = unix_ms) -> None:
        self._clock = clock
        self._known: OrderedDict[Hashable, Refusal] = OrderedDict()

    def note(self, whose: Hashable, refusal: Refusal) -> None:
        """Take a refusal in; ``whose`` tells its cause from others: a page, an address, a source."""
        key = (refusal.kind, refusal.code, short(whose) if isinstance(whose, str) else whose)
        for name in ("reason", "source", "origin", "client"):
            text = getattr(refusal, name)
            if text is not None and len(text) > SHOWN:
                setattr(refusal, name, text[:SHOWN])
        known = self._known.pop(key, None)
        refusal.times = 1 if known is None else known.times + 1
        refusal.at_ms = self._clock()
        self._known[key] = refusal
        if len(self._known) > KEPT:
            self._known.popitem(last=False)

    def newest(self) -> list[Refusal]:
        """Return them, the newest first."""
        return list(reversed(self._known.values()))
