"""Finds the credentials of a request. Pure.

The order of preference: ``Authorization: Bearer``, which code sends on purpose; a ticket, which was issued
for this URL; a cookie, which browsers attach by themselves; a token in the URL as the last resort (RFC 9700
§4.3.2).
"""

from collections.abc import Container, Mapping
from typing import Literal, NamedTuple
from urllib.parse import unquote_plus

from gateway.config.model.auth import AuthConfig, canonical_query_name
from gateway.config.model.origins import CROSS_ORIGIN_FETCH_SITES
from gateway.core.errors import Forbidden

TICKET_PARAMETER = "ticket"
"""The query value that holds a ticket."""


class Credential(NamedTuple):
    """A token or a ticket, not verified yet."""

    kind: Literal["token", "ticket"]
    value: str
    location: Literal["header", "cookie", "query"] = "header"


def find_credential(
    headers: Mapping[str, str], query: Mapping[str, str], auth: AuthConfig
) -> Credential | None:
    """Return the first credential of a request."""
    text = bearer_token(headers)
    if text is not None:
        return Credential("token", text)
    if query and auth.tickets is not None and (text := query.get(TICKET_PARAMETER)):
        return Credential("ticket", text, "query")
    if auth.cookie is not None and (text := _cookie_value(headers.get("Cookie"), auth.cookie)):
        return Credential("token", text, "cookie")
    if query and auth.query is not None and (text := query.get(auth.query)):
        return Credential("token", text, "query")
    return None


def strip_query(uri: str, names: Container[str]) -> str:
    """Return path and query as they were sent, without the query values of these names.

    The gateway's own names match regardless of case.
    """
    path, mark, query = uri.partition("?")
    kept = [
        part
        for part in query.split("&")
        if canonical_query_name(unquote_plus(part.partition("=")[0])) not in names
    ]
    return path + mark + "&".join(kept) if mark and any(kept) else path


def check_fetch_metadata(headers: Mapping[str, str]) -> None:
    """Reject requests that a page of another origin makes a browser send without a preflight.

    An image, a script, a frame, a form or a link carries the user's cookies, names no ``Origin``, and lets
    the page read nothing: it could only use up the user's streams, or replace one. An EventSource and fetch
    send the mode ``cors`` (Fetch Metadata, W3C); other clients send neither header. Raises Forbidden.
    """
    if headers.get("Sec-Fetch-Site") in CROSS_ORIGIN_FETCH_SITES and headers.get("Sec-Fetch-Mode") != "cors":
        raise Forbidden(
            "pages of other origins must use EventSource or fetch with mode cors", code="cross_origin"
        )


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """Return the token of an ``Authorization: Bearer`` header (RFC 6750 §2.1)."""
    scheme, _, text = headers.get("Authorization", "").partition(" ")
    return (text.strip() or None) if scheme.lower() == "bearer" else None


def _cookie_value(header: str | None, name: str) -> str | None:
    # Python's parser rejects the whole header for one malformed cookie of another application.
    for part in (header or "").split(";"):
        found, _, value = part.strip().partition("=")
        if found == name and value:
            return value.strip('"')
    return None
