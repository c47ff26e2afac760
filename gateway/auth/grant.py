"""What somebody may: the outcome of a token, a ticket, or the user's own endpoint."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

Claims = Mapping[str, Any]


class Grant(msgspec.Struct, frozen=True):
    """Shared by all streams of one token; kept as long as they live."""

    subject: str | None = None
    """Whom a token names (``sub``): who counts for ``limits.connections_per_user``."""
    issuer: str | None = None
    """Who named it: subjects of two issuers are not the same person."""
    claims: Claims | None = None
    """Of a verified token those that rules may ask for; None where there was none."""
    opened: frozenset[str] = frozenset()
    """Channels that a ticket or the endpoint opened, whatever their rule."""
    expires: float | None = None
    """Unix seconds of the token's end; None: it has none."""
    leeway: float = 0.0
    """Seconds for which it is taken after that."""

    def left(self, now: float) -> float:
        """Return for how many seconds a stream may live that opens now (unix seconds)."""
        if self.expires is None:
            return math.inf
        left = self.expires - now
        return left if left > 0 else left + self.leeway

    def joined(self, other: "Grant") -> "Grant":
        """Return what both say together, this one first: it ends with the first of them to end."""
        ends = [each for each in (self.expires, other.expires) if each is not None]
        named = self if self.subject is not None else other
        return Grant(
            named.subject,
            named.issuer,
            self.claims if self.claims is not None else other.claims,
            self.opened | other.opened,
            min(ends, default=None),
            min(self.leeway, other.leeway),
        )


NOBODY = Grant()
"""Whoever reads public channels."""
