"""What somebody may: the outcome of a token, a ticket, or the user's own endpoint."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Claims = Mapping[str, Any]


SHORT = 60
"""Characters of the longest claim that an error shows."""

_PLAIN = re.compile(r"[ !#-&(-\[\]-~]+")


def kind_of_claim(value: Any) -> str:
    """Return what a claim is, for an error, and nothing of its value: ``is missing``, ``is a number``."""
    if value is None:
        return "is missing"
    for kind, word in _KINDS:
        if isinstance(value, kind):
            return f"is {word}"
    return "is an object"


def claim_in_words(value: Any) -> str:
    """Return a claim for an error, with its value where that is short and plain: ``is 'https://id.example'``."""
    if isinstance(value, str) and len(value) <= SHORT and _PLAIN.fullmatch(value):
        return f"is {value!r}"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and len(str(value)) <= SHORT:
        return f"is the number {value}"
    if isinstance(value, list) and 0 < len(value) <= 3 and all(isinstance(each, str) for each in value):
        text = ", ".join(value)
        if len(text) <= SHORT and _PLAIN.fullmatch(text):
            return f"is [{text}]"
    return kind_of_claim(value)


_KINDS: Sequence[tuple[type | tuple[type, ...], str]] = (
    (str, "text"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (list, "a list"),
)


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

    @property
    def is_anybody(self) -> bool:
        """Whether nobody showed anything for it."""
        return self is NOBODY

    def joined(self, other: "Grant") -> "Grant":
        """Return what both say together, this one first: it ends with the first of them to end."""
        named = self if self.subject is not None else other
        ends = [each for each in (self, other) if each.expires is not None]
        first = min(ends, key=lambda each: each.expires or 0.0, default=self)
        return Grant(
            named.subject,
            named.issuer,
            self.claims if self.claims is not None else other.claims,
            self.opened | other.opened,
            first.expires,
            first.leeway,
        )


NOBODY = Grant()
"""Whoever reads public channels."""
