"""Verdicts on CORS (WHATWG Fetch): what a page may read, and what its preflight is told. Pure."""

from gateway.cli.doctor.response import ResponseHead
from gateway.cli.finding import Finding, Level, bad, ok

PREFLIGHT_HEADERS = ("authorization", "last-event-id")
"""Headers that fetch-based clients send, and so ask for."""

_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_CREDENTIALS = "Access-Control-Allow-Credentials"
_DUPLICATE_CORS_FIX = (
    "let the gateway alone answer CORS: take the proxy's add_header lines out"
    " (or nginx: proxy_hide_header Access-Control-Allow-Origin;)"
)
_ALLOW_ORIGIN_FIX = (
    "add the origin to cors.origins of the gateway, and let the proxy pass Origin and Access-Control-* on"
)


def origin_verdict(head: ResponseHead, origin: str, check: str = "cors") -> Finding:
    """Return whether a page of ``origin`` may read an answer."""
    values = head.get_all(_ALLOW_ORIGIN)
    if not values:
        return bad(check, f"no {_ALLOW_ORIGIN}: a page of {origin} sees an error only", _ALLOW_ORIGIN_FIX)
    if len(values) > 1 or "," in values[0]:
        return bad(
            check,
            f"{_ALLOW_ORIGIN} comes more than once ({', '.join(values)}): browsers refuse it",
            _DUPLICATE_CORS_FIX,
        )
    (value,) = values
    credentials = head.get(_CREDENTIALS)
    if value == "*" and credentials:
        return bad(
            check,
            f"{_ALLOW_ORIGIN}: * together with {_CREDENTIALS}: browsers refuse cookies",
            _DUPLICATE_CORS_FIX,
        )
    if value == "*":
        return ok(check, "every page may read it, without cookies (withCredentials fails)")
    if value == "null":
        return bad(
            check,
            f"{_ALLOW_ORIGIN}: null is what sandboxed pages send; {origin} may not read",
            _DUPLICATE_CORS_FIX,
        )
    if value != origin:
        return bad(check, f"{_ALLOW_ORIGIN} is {value}, and not {origin}", _DUPLICATE_CORS_FIX)
    if credentials not in ("", "true"):
        return bad(
            check,
            f"{_CREDENTIALS} is {credentials!r}; the only word that counts is true, once",
            _DUPLICATE_CORS_FIX,
        )
    cookies = "with cookies too" if credentials else "without cookies (cors.credentials is off)"
    return ok(check, f"{origin} may read it, {cookies}")


def vary_verdict(head: ResponseHead) -> Finding:
    """Return whether caches keep the answers to different origins apart."""
    if head.tokens("Vary") & {"origin", "*"}:
        return ok("vary", f"Vary: {head.get('Vary')}")
    if head.get(_ALLOW_ORIGIN) == "*":
        return ok("vary", "not needed: the answer is the same for every page")
    return bad(
        "vary",
        "no Vary: Origin: a cache gives one page the answer to another, which the browser then refuses",
        "pass the gateway's Vary on (nginx: no proxy_hide_header Vary;); who sets CORS must set it too",
    )


def preflight_verdict(head: ResponseHead, origin: str) -> Finding:
    """Return whether fetch-based clients pass their preflight, which carries no token and no cookie."""
    check = "preflight"
    if not 200 <= head.status < 300:
        return bad(
            check,
            f"OPTIONS is answered {head.status}: clients that send {' or '.join(PREFLIGHT_HEADERS)} get nothing",
            "pass OPTIONS on to the gateway, before any authentication: it answers them without a token",
        )
    finding = origin_verdict(head, origin, check)
    if finding.level is not Level.OK:
        return finding
    missing = [name for name in PREFLIGHT_HEADERS if name not in _allowed_headers(head)]
    if missing:
        return bad(
            check,
            f"Access-Control-Allow-Headers lacks {', '.join(missing)}",
            "add it to cors.allow_headers of the gateway; if it is there, something else answers OPTIONS",
        )
    return ok(check, f"{' and '.join(PREFLIGHT_HEADERS)} are allowed, without a token")


def _allowed_headers(head: ResponseHead) -> set[str]:
    allowed = head.tokens("Access-Control-Allow-Headers")
    # The star stands for all but this one, and with credentials for nothing but itself.
    if "*" in allowed and not head.get(_CREDENTIALS):
        return allowed | set(PREFLIGHT_HEADERS) - {"authorization"}
    return allowed
