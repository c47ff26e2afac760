"""Which claims open which channels, and the other way round. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.auth.grant import Grant
from gateway.auth.rules import CHANNELS, authorize
from gateway.config.catalog import Catalog, Declared
from gateway.config.faults import nearest
from gateway.config.model import ClaimsAccess
from gateway.config.template import fill
from gateway.errors import Forbidden, GatewayError, NotFound, Unauthorized


def wanted(catalog: Catalog, channels: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims that open all of these channels, on top of those that are ``given``.

    Raises NotFound for a name that no channel has, Forbidden where no token opens it.
    """
    claims: dict[str, Any] = dict(given)
    for name in channels:
        match = catalog.resolve(name)
        if match is None and "*" not in name:
            raise NotFound(f"no channel is called {name!r}; {nearest(name, catalog.declared)}")
        access = "token" if match is None else match.declared.spec.access
        if access == "forward":
            raise Forbidden(f"{name} has access: forward, so auth.forward.url decides, and no token alone")
        if match is not None and isinstance(access, ClaimsAccess):
            for claim, rule in access.claims.items():
                _set(claims, claim, fill(rule, match.fields), name)
        elif access == "token":
            listed = claims.get(CHANNELS, [])
            listed = [listed] if isinstance(listed, str) else list(listed) if isinstance(listed, list) else []
            claims[CHANNELS] = [*listed, *([] if name in listed else [name])]
    return claims


def _set(claims: dict[str, Any], claim: str, value: str, name: str) -> None:
    have = claims.setdefault(claim, value)
    values = have if isinstance(have, list) else [have]
    if value not in map(str, values):
        raise Forbidden(f"{name} wants the claim {claim} to be {value!r}, and it is {have!r} already")


def opened(catalog: Catalog, grant: Grant, asked: Sequence[str]) -> list[tuple[str, bool, str]]:
    """Return for each channel its name, whether a reader with that grant may have it, and what its rule says.

    Those that were asked for come first; of templates only instances can be told, so they say their rule.
    """
    rows = []
    for name in asked:
        match = catalog.resolve(name)
        if match is not None:
            try:
                authorize([match], grant)
                rows.append((name, True, rule(match.declared)))
            except (Forbidden, Unauthorized) as error:
                rows.append((name, False, error.message))
    for declared in catalog.declared.values():
        match = catalog.resolve(declared.name)
        if match is None or declared.name in asked:
            continue
        if _is_open(match, grant):
            rows.append((declared.name, True, rule(declared)))
    return rows


def _is_open(match: Any, grant: Grant) -> bool:
    try:
        authorize([match], grant)
    except GatewayError:
        return False
    return True


def rule(declared: Declared) -> str:
    """Return a channel's ``access`` in words."""
    access = declared.spec.access
    if isinstance(access, ClaimsAccess):
        return "claims " + ", ".join(f"{claim} = {value}" for claim, value in access.claims.items())
    words = {
        "public": "public",
        "token": "the channels claim lists it",
        "forward": "auth.forward.url decides",
    }
    return words[access]
