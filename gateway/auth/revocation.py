"""Which streams and grants a revocation ends: one by an operator, or one that a reload causes.

A `RevocationRule` matches streams. `Revocation` is an operator's (``DELETE /streams``), `ReconfigurationRule`
a reload's. `RecentRevocations` remembers the last ones, so that no request that was authorized before a
revocation opens a stream, or is cached, after it.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import msgspec

from gateway.auth.grant import Grant
from gateway.auth.rules import authorize
from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch, DeclaredChannel
from gateway.core.errors import GatewayError

REVOKED = "revoked"
"""Why a stream ends whose grant no longer allows it."""

RECONFIGURED = "reconfigured"
"""Why a stream ends whose channel has changed: its client reconnects and is authorized anew."""

MAX_RECENT_REVOCATIONS = 1000
"""Revocations that are remembered; requests that began before the oldest of them count as revoked."""

OriginCheck = Callable[[str, tuple[str, ...]], object | None]
"""Returns what forbids a page's origin to read some channels; None where nothing does."""


class RevocationRule(Protocol):
    """A reason for which some streams must end."""

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return the reason for a stream that must end, as in ``stream.close``; None for all others.

        ``channels`` are those that it follows, by full name and by declared name; ``origin`` is the page that
        opened it.
        """


class Revocation(msgspec.Struct, frozen=True):
    """Ends streams of a subject, or of a channel, or of both together; of neither: all with a grant."""

    subject: str | None
    channel: str | None

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return ``revoked`` for a stream that must end."""
        if self.subject is None and self.channel is None:
            return None if grant.is_anonymous else REVOKED
        is_of_subject = self.subject is None or grant.subject == self.subject
        return REVOKED if is_of_subject and (self.channel is None or self.channel in channels) else None


class RevokedGrants(NamedTuple):
    """Kinds of grants that a reload makes invalid."""

    has_token_grants: bool
    """Those of tokens, and of tickets that were issued for them."""
    has_channel_grants: bool
    """Those of tickets and of the forward-auth endpoint."""


class ReconfigurationRule:
    """Ends streams that the new configuration would not open as they are.

    ``changed_rules`` are the declared names of channels with another ``access``; ``origin_check`` is None
    unless a list of origins changed.
    """

    def __init__(
        self,
        catalog: ChannelCatalog,
        changed_rules: Collection[str],
        revoked_grants: RevokedGrants,
        origin_check: OriginCheck | None,
    ) -> None:
        self._catalog = catalog
        self._changed_rules = frozenset(changed_rules)
        self._revoked_grants = revoked_grants
        self._origin_check = origin_check

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return ``reconfigured`` or ``revoked`` for a stream that must end, else None."""
        for name, declared in channels.items():
            current = self._catalog.current_declaration(name, declared)
            if current is None or current.stream_schema is not declared.stream_schema:
                return RECONFIGURED
            if current.name in self._changed_rules and not _still_allows(grant, name, current):
                return REVOKED
        if self._revoked_grants.has_token_grants and (grant.claims is not None or grant.opened):
            return REVOKED
        if self._revoked_grants.has_channel_grants and grant.opened:
            return REVOKED
        if origin is not None and self._origin_check is not None:
            names = [name for name, each in channels.items() if not _is_template_name(name, each)]
            if self._origin_check(origin, tuple(names)) is not None:
                return REVOKED
        return None


def _still_allows(grant: Grant, name: str, declared: DeclaredChannel) -> bool:
    """Tell whether a channel's rule allows the grant's claims; what opened it before no longer counts."""
    if _is_template_name(name, declared):
        return True
    try:
        authorize([ChannelMatch(name, declared)], Grant(grant.subject, grant.issuer, grant.claims))
    except GatewayError:
        return False
    return True


def _is_template_name(name: str, declared: DeclaredChannel) -> bool:
    """Tell whether a name is a template's own, which streams follow for the gaps of all its channels."""
    return name == declared.name and not declared.template.is_exact


class RecentRevocations:
    """Counts all revocations since the start, and remembers the last ones."""

    def __init__(self) -> None:
        self.count = 0
        """How many there were: note it before a request is authorized, and compare it afterwards."""
        self._recent: deque[RevocationRule] = deque(maxlen=MAX_RECENT_REVOCATIONS)

    def add(self, rule: RevocationRule) -> None:
        """Remember a revocation."""
        self.count += 1
        self._recent.append(rule)

    def match_since(
        self, count: int, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None = None
    ) -> str | None:
        """Return why a request that was authorized when `count` was ``count`` must not go on, else None."""
        later = self.count - count
        if later > len(self._recent):
            return None if grant.is_anonymous else REVOKED
        recent = list(self._recent)[len(self._recent) - later :]
        return next((why for each in recent if (why := each.match(grant, channels, origin))), None)
