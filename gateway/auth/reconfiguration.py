"""What a reload withdraws: which streams may not go on as they are."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from gateway.auth.grant import Grant
from gateway.auth.revocations import REVOKED
from gateway.auth.rules import authorize
from gateway.config.catalog import Catalog, Declared, Match
from gateway.errors import GatewayError

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
