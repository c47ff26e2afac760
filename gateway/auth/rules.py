"""Whether a grant opens channels: the rule of each, ``access`` in the file. Pure."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gateway.auth.grant import Claims, Grant, kind_of_claim
from gateway.config.catalog import Match
from gateway.config.model.config import ClaimsAccess
from gateway.config.template import fill
from gateway.core.errors import Forbidden, Unauthorized, bearer_error

CHANNELS = "channels"
"""The claim that lists names and globs, for ``access: token``."""


def is_public(matches: Iterable[Match]) -> bool:
    """Tell whether everybody may have all of these channels."""
    for match in matches:  # noqa: SIM110  # half the time of all(), for every handshake of a herd
        if match.declared.spec.access != "public":
            return False
    return True


class Needs(NamedTuple):
    """What must be looked at before some channels open."""

    token: bool
    forward: bool


def needs(matches: Iterable[Match]) -> Needs:
    """Return what these channels need."""
    rules = [match.declared.spec.access for match in matches]
    forward = "forward" in rules
    return Needs(any(rule not in ("public", "forward") for rule in rules), forward)


def authorize(matches: Iterable[Match], grant: Grant) -> None:
    """Check that a reader may have all of these channels.

    Raises Unauthorized where a token is missing, Forbidden where it does not reach.
    """
    for match in matches:
        access = match.declared.spec.access
        if access == "public" or match.name in grant.opened:
            continue
        if access == "forward" or (grant.claims is None and grant.opened):
            raise _forbidden(f"the channel {match.name!r} was not opened by what the client gave")
        if grant.claims is None:
            raise Unauthorized(f"the channel {match.name!r} needs a token", code="missing_token")
        if isinstance(access, ClaimsAccess):
            _check_claims(match, access.claims, grant.claims)
        elif not lists(grant.claims.get(CHANNELS), match.name):
            claim = grant.claims.get(CHANNELS)
            raise _forbidden(f"the token's {CHANNELS} claim {_why(claim)} list {match.name!r}")


def lists(claim: Any, name: str) -> bool:
    """Tell whether a claim (a name, a glob, or a list of them) covers a channel's name."""
    patterns = [claim] if isinstance(claim, str) else claim
    return isinstance(patterns, list) and any(
        isinstance(pattern, str) and (pattern == name or ("*" in pattern and _glob(pattern, name)))
        for pattern in patterns
    )


def _check_claims(match: Match, rules: Mapping[str, str], claims: Claims) -> None:
    for claim, rule in rules.items():
        wanted = fill(rule, match.fields)
        value = claims.get(claim)
        values = value if isinstance(value, list) else [value]
        if wanted not in [str(each) for each in values if isinstance(each, (str, int))]:
            raise _forbidden(f"the token's {claim} claim {_why(value)} allow {match.name!r}")


def _why(claim: Any) -> str:
    """Return what is wrong with a claim, without its value, which may be personal data."""
    if isinstance(claim, str) or (isinstance(claim, int) and not isinstance(claim, bool)):
        return "does not"
    if isinstance(claim, list) and claim:
        return "does not"
    return f"{'is an empty list' if claim == [] else kind_of_claim(claim)}, and must"


def _glob(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def _forbidden(message: str) -> Forbidden:
    return Forbidden(message, code="channel_forbidden", challenge=bearer_error("insufficient_scope", message))
