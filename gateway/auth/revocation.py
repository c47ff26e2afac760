"""What a reload withdraws: which streams may not go on as they are."""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import msgspec

from gateway.auth.grant import Grant
from gateway.auth.rules import authorize
from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch, DeclaredChannel
from gateway.core.errors import GatewayError

RECONFIGURED = "reconfigured"
"""Why a stream ends whose channel is another one now: its client comes back, and is decided about anew."""

OriginCheck = Callable[[str, tuple[str, ...]], object | None]
"""Returns what keeps a page from reading some channels; None where nothing does."""


class RevokedGrants(NamedTuple):
    """Kinds of grants that do not hold any more."""

    has_token_grants: bool
    """Those of tokens, and of tickets that were given for them."""
    has_channel_grants: bool
    """Those of tickets and of the user's endpoint."""


class ReconfigurationRule:
    """Asks the rules that hold by now."""

    def __init__(
        self,
        catalog: ChannelCatalog,
        changed_rules: Collection[str],
        revoked_grants: RevokedGrants,
        origin_check: OriginCheck | None,
    ) -> None:
        """``rules`` are the channels (declared names) with another ``access``.

        ``refusing`` is None where no list of origins became another one.
        """
        self._catalog = catalog
        self._changed_rules = frozenset(changed_rules)
        self._revoked_grants = revoked_grants
        self._origin_check = origin_check

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return ``reconfigured`` or ``revoked`` for a stream that must end, else None."""
        for name, declared in channels.items():
            now = self._catalog.current_declaration(name, declared)
            if now is None or now.stream_schema is not declared.stream_schema:
                return RECONFIGURED
            if now.name in self._changed_rules and not self._still_allows(grant, name, now):
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

    @staticmethod
    def _still_allows(grant: Grant, name: str, now: DeclaredChannel) -> bool:
        """Tell whether a rule lets somebody in for what they showed; what opened it before counts no more."""
        if _is_template_name(name, now):
            return True
        shown = Grant(grant.subject, grant.issuer, grant.claims)
        try:
            authorize([ChannelMatch(name, now)], shown)
        except GatewayError:
            return False
        return True


def _is_template_name(name: str, declared: DeclaredChannel) -> bool:
    """Tell whether a name is a template's own, which streams follow for the gaps of all its channels."""
    return name == declared.name and not declared.template.is_exact


# What was revoked lately, so that nothing that was decided before opens or is remembered after.

MAX_RECENT_REVOCATIONS = 1000
"""Revocations that are remembered; whoever began before the oldest of them is taken to be meant."""


REVOKED = "revoked"


class RevocationRule(Protocol):
    """A reason for which some streams must not go on."""

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return why a stream must end, as ``stream.close`` tells it, or None where it is not meant.

        ``channels`` are what it follows, declared names included; ``origin`` is the page that opened it.
        """


class Revocation(msgspec.Struct, frozen=True):
    """Streams of a subject, or of a channel, or of both together; of neither: of everybody with a grant."""

    subject: str | None
    channel: str | None

    def match(self, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None) -> str | None:
        """Return ``revoked`` for a stream that is meant."""
        if self.subject is None and self.channel is None:
            is_meant = not grant.is_anonymous
        else:
            is_meant = (self.subject is None or grant.subject == self.subject) and (
                self.channel is None or self.channel in channels
            )
        return REVOKED if is_meant else None


class RecentRevocations:
    """All since the start, of which the last are remembered."""

    def __init__(self) -> None:
        self.count = 0
        """How many there were: note it before asking, and compare it after."""
        self._recent: deque[RevocationRule] = deque(maxlen=MAX_RECENT_REVOCATIONS)

    def add(self, rule: RevocationRule) -> None:
        """Remember one."""
        self.count += 1
        self._recent.append(rule)

    def match_since(
        self, count: int, grant: Grant, channels: Mapping[str, DeclaredChannel], origin: str | None = None
    ) -> str | None:
        """Return why what was begun at a ``number`` must not go on; None where nothing came after it."""
        later = self.count - count
        if later > len(self._recent):
            return None if grant.is_anonymous else REVOKED
        recent = list(self._recent)[len(self._recent) - later :]
        return next((why for each in recent if (why := each.match(grant, channels, origin))), None)
