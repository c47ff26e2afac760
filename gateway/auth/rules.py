"""Access rules: whether a grant opens a channel by its ``access`` setting. Pure."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gateway.auth.grant import Claims, Grant, describe_claim_type
from gateway.config.channel_catalog import ChannelMatch
from gateway.config.model.config import ClaimsAccessConfig
from gateway.config.template import fill_fields
from gateway.core.errors import Forbidden, Unauthorized, bearer_challenge

CHANNELS_CLAIM = "channels"
"""The claim that lists the names and globs of channels for ``access: token``."""


def is_public(matches: Iterable[ChannelMatch]) -> bool:
    """Tell whether anybody may read all of these channels."""
    for match in matches:  # noqa: SIM110  # half the time of all(); bench row: storm
        if match.declared.config.access != "public":
            return False
    return True


class RequiredAuth(NamedTuple):
    """Which credentials some channels require."""

    is_token_required: bool
    is_forward_required: bool


def required_auth(matches: Iterable[ChannelMatch]) -> RequiredAuth:
    """Return which credentials these channels require."""
    rules = [match.declared.config.access for match in matches]
    forward = "forward" in rules
    return RequiredAuth(any(rule not in ("public", "forward") for rule in rules), forward)


def authorize(matches: Iterable[ChannelMatch], grant: Grant) -> None:
    """Check that a grant opens all of these channels.

    Raises Unauthorized where a token is missing, Forbidden where the grant does not cover a channel.
    """
    for match in matches:
        access = match.declared.config.access
        if access == "public" or match.name in grant.opened:
            continue
        if access == "forward" or (grant.claims is None and grant.opened):
            raise _forbidden(
                f"the channel {match.name!r} is not opened by the ticket, or by the forward-auth endpoint"
            )
        if grant.claims is None:
            raise Unauthorized(f"the channel {match.name!r} requires a token", code="missing_token")
        if isinstance(access, ClaimsAccessConfig):
            _check_claims(match, access.claims, grant.claims)
        elif not claim_covers(grant.claims.get(CHANNELS_CLAIM), match.name):
            claim = grant.claims.get(CHANNELS_CLAIM)
            raise _forbidden(
                f"the token's {CHANNELS_CLAIM} claim {_describe_mismatch(claim)} list {match.name!r}"
            )


def claim_covers(claim: Any, name: str) -> bool:
    """Tell whether a claim (a name, a glob, or a list of them) covers a channel's name."""
    patterns = [claim] if isinstance(claim, str) else claim
    return isinstance(patterns, list) and any(
        isinstance(pattern, str) and (pattern == name or ("*" in pattern and _glob_matches(pattern, name)))
        for pattern in patterns
    )


def _check_claims(match: ChannelMatch, rules: Mapping[str, str], claims: Claims) -> None:
    for claim, rule in rules.items():
        wanted = fill_fields(rule, match.fields)
        value = claims.get(claim)
        values = value if isinstance(value, list) else [value]
        if wanted not in [str(each) for each in values if isinstance(each, (str, int))]:
            raise _forbidden(f"the token's {claim} claim {_describe_mismatch(value)} allow {match.name!r}")


def _describe_mismatch(claim: Any) -> str:
    """Return how a claim fails a rule, without its value, which may be personal data."""
    if isinstance(claim, str) or (isinstance(claim, int) and not isinstance(claim, bool)):
        return "does not"
    if isinstance(claim, list) and claim:
        return "does not"
    return f"{'is an empty list' if claim == [] else describe_claim_type(claim)}, and must"


def _glob_matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]"))


def _forbidden(message: str) -> Forbidden:
    return Forbidden(
        message, code="channel_forbidden", challenge=bearer_challenge("insufficient_scope", message)
    )
