"""Grants: what a token, a ticket or the forward-auth endpoint allows a client."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

Claims = Mapping[str, Any]


MAX_SHOWN_CLAIM_CHARS = 60
"""Characters of the longest claim that an error shows."""

_PRINTABLE = re.compile(r"[ !#-&(-\[\]-~]+")


def describe_claim_type(value: Any) -> str:
    """Return a claim's type for an error, without its value: ``is missing``, ``is a number``."""
    if value is None:
        return "is missing"
    for kind, word in _CLAIM_TYPES:
        if isinstance(value, kind):
            return f"is {word}"
    return "is an object"


def describe_claim(value: Any) -> str:
    """Return a claim for an error, with its value if that is short and plain: ``is 'reports'``."""
    if isinstance(value, str) and len(value) <= MAX_SHOWN_CLAIM_CHARS and _PRINTABLE.fullmatch(value):
        return f"is {value!r}"
    if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and len(str(value)) <= MAX_SHOWN_CLAIM_CHARS
    ):
        return f"is the number {value}"
    if isinstance(value, list) and 0 < len(value) <= 3 and all(isinstance(each, str) for each in value):
        text = ", ".join(value)
        if len(text) <= MAX_SHOWN_CLAIM_CHARS and _PRINTABLE.fullmatch(text):
            return f"is [{text}]"
    return describe_claim_type(value)


_CLAIM_TYPES: Sequence[tuple[type | tuple[type, ...], str]] = (
    (str, "text"),
    (bool, "true or false"),
    ((int, float), "a number"),
    (list, "a list"),
)


class Grant(msgspec.Struct, frozen=True):
    """What a client may read, and as which user. All streams of one token share it."""

    subject: str | None = None
    """The user, from the token's ``sub``; counted by ``limits.connections_per_user``."""
    issuer: str | None = None
    """The token's issuer: equal subjects of two issuers are different users."""
    claims: Claims | None = None
    """The claims of a verified token that access rules use; None without a token."""
    opened: frozenset[str] = frozenset()
    """Channels that a ticket or the forward-auth endpoint opened, whatever their rule."""
    expires: float | None = None
    """Unix seconds of the token's end; None: it has none."""
    leeway: float = 0.0
    """Seconds for which the token is accepted after that."""

    def seconds_left(self, now: float) -> float:
        """Return for how many seconds a stream that opens at ``now`` (unix seconds) may live."""
        if self.expires is None:
            return math.inf
        left = self.expires - now
        return left if left > 0 else left + self.leeway

    @property
    def is_anonymous(self) -> bool:
        """Whether the client presented no credentials."""
        return self is ANONYMOUS

    def merge(self, other: "Grant") -> "Grant":
        """Return the union of two grants. This one's subject has precedence; the earlier expiry applies."""
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


ANONYMOUS = Grant()
"""The grant of clients without credentials: public channels only."""
