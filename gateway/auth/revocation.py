"""What a reload withdraws: which streams may not go on as they are."""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import msgspec

from gateway.auth.grant import Grant
from gateway.auth.rules import authorize
from gateway.config.catalog import Catalog, Declared, Match
from gateway.core.errors import GatewayError

RECONFIGURED = "reconfigured"
"""Why a stream ends whose channel is another one now: its client comes back, and is decided about anew."""

Refusing = Callable[[str, tuple[str, ...]], object | None]
"""Returns what keeps a page from reading some channels; None where nothing does."""


class Void(NamedTuple):
    """Kinds of grants that do not hold any more."""

    tokens: bool
    """Those of tokens, and of tickets that were given for them."""
    opened: bool
    """Those of tickets and of the user's endpoint."""


class Reconfiguration:
    """Asks the rules that hold by now."""

    def __init__(
        self, catalog: Catalog, rules: Collection[str], void: Void, refusing: Refusing | None
    ) -> None:
        """``rules`` are the channels (declared names) with another ``access``.

        ``refusing`` is None where no list of origins became another one.
        """
        self._catalog = catalog
        self._rules = frozenset(rules)
        self._void = void
        self._refusing = refusing

    def means(self, grant: Grant, channels: Mapping[str, Declared], origin: str | None) -> str | None:
        """Return ``reconfigured`` or ``revoked`` for a stream that must end, else None."""
        for name, declared in channels.items():
            now = self._catalog.now(name, declared)
            if now is None or now.form is not declared.form:
                return RECONFIGURED
            if now.name in self._rules and not self._allows(grant, name, now):
                return REVOKED
        if self._void.tokens and (grant.claims is not None or grant.opened):
            return REVOKED
        if self._void.opened and grant.opened:
            return REVOKED
        if origin is not None and self._refusing is not None:
            names = [name for name, each in channels.items() if not _is_template(name, each)]
            if self._refusing(origin, tuple(names)) is not None:
                return REVOKED
        return None

    @staticmethod
    def _allows(grant: Grant, name: str, now: Declared) -> bool:
        """Tell whether a rule lets somebody in for what they showed; what opened it before counts no more."""
        if _is_template(name, now):
            return True
        shown = Grant(grant.subject, grant.issuer, grant.claims)
        try:
            authorize([Match(name, now)], shown)
        except GatewayError:
            return False
        return True


def _is_template(name: str, declared: Declared) -> bool:
    """Tell whether a name is a template's own, which streams follow for the gaps of all its channels."""
    return name == declared.name and not declared.template.is_exact


# What was revoked lately, so that nothing that was decided before opens or is remembered after.

REMEMBERED = 1000
"""Revocations that are remembered; whoever began before the oldest of them is taken to be meant."""


REVOKED = "revoked"


class Withdrawal(Protocol):
    """A reason for which some streams must not go on."""

    def means(self, grant: Grant, channels: Mapping[str, Declared], origin: str | None) -> str | None:
        """Return why a stream must end, as ``stream.close`` tells it, or None where it is not meant.

        ``channels`` are what it follows, declared names included; ``origin`` is the page that opened it.
        """


class Revocation(msgspec.Struct, frozen=True):
    """Streams of a subject, or of a channel, or of both together; of neither: of everybody with a grant."""

    subject: str | None
    channel: str | None

    def means(self, grant: Grant, channels: Mapping[str, Declared], origin: str | None) -> str | None:
        """Return ``revoked`` for a stream that is meant."""
        if self.subject is None and self.channel is None:
            is_meant = not grant.is_anybody
        else:
            is_meant = (self.subject is None or grant.subject == self.subject) and (
                self.channel is None or self.channel in channels
            )
        return REVOKED if is_meant else None


class Revocations:
    """All since the start, of which the last are remembered."""

    def __init__(self) -> None:
        self.number = 0
        """How many there were: note it before asking, and compare it after."""
        self._recent: deque[Withdrawal] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Withdrawal) -> None:
        """Remember one."""
        self.number += 1
        self._recent.append(revocation)

    def hit(
        self, since: int, grant: Grant, channels: Mapping[str, Declared], origin: str | None = None
    ) -> str | None:
        """Return why what was begun at a ``number`` must not go on; None where nothing came after it."""
        later = self.number - since
        if later > len(self._recent):
            return None if grant.is_anybody else REVOKED
        recent = list(self._recent)[len(self._recent) - later :]
        return next((why for each in recent if (why := each.means(grant, channels, origin))), None)
