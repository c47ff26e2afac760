"""Verdicts on CORS (WHATWG Fetch): responses that a page may read, and preflights. Pure."""

from gateway.cli.doctor.response import ResponseHead
from gateway.cli.finding import Finding, Level, bad, ok

PREFLIGHT_HEADERS = ("authorization", "last-event-id")
"""Headers of fetch-based clients, for which browsers send a preflight."""

_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_CREDENTIALS = "Access-Control-Allow-Credentials"
_DUPLICATE_CORS_FIX = (
    "let only the gateway set CORS headers: remove the proxy's add_header lines"
    " (or nginx: proxy_hide_header Access-Control-Allow-Origin;)"
)
_ALLOW_ORIGIN_FIX = (
    "add the origin to the gateway's cors.origins, and let the proxy forward Origin and Access-Control-*"
)


def origin_verdict(head: ResponseHead, origin: str, check: str = "cors") -> Finding:
    """Return whether a page of ``origin`` may read a response."""
    values = head.get_all(_ALLOW_ORIGIN)
    if not values:
        return bad(check, f"no {_ALLOW_ORIGIN}: a page of {origin} only sees an error", _ALLOW_ORIGIN_FIX)
    value, credentials = ", ".join(values), head.get(_CREDENTIALS)
    if "," in value:
        found = f"{_ALLOW_ORIGIN} is set more than once ({value}): browsers reject it"
    elif value == "*" and credentials:
        found = f"{_ALLOW_ORIGIN}: * together with {_CREDENTIALS}: browsers reject cookies"
    elif value == "*":
        return ok(check, "every page may read it, without cookies (withCredentials fails)")
    elif value == "null":
        found = f"{_ALLOW_ORIGIN}: null is the origin of sandboxed pages; {origin} may not read it"
    elif value != origin:
        found = f"{_ALLOW_ORIGIN} is {value}, not {origin}"
    elif credentials not in ("", "true"):
        found = f"{_CREDENTIALS} is {credentials!r}; the only valid value is true, once"
    else:
        cookies = "with cookies too" if credentials else "without cookies (cors.credentials is off)"
        return ok(check, f"{origin} may read it, {cookies}")
    return bad(check, found, _DUPLICATE_CORS_FIX)


def vary_verdict(head: ResponseHead) -> Finding:
    """Return whether caches keep the responses to different origins apart."""
    if head.tokens("Vary") & {"origin", "*"}:
        return ok("vary", f"Vary: {head.get('Vary')}")
    if head.get(_ALLOW_ORIGIN) == "*":
        return ok("vary", "not needed: the response is the same for every page")
    found = "no Vary: Origin: a cache may serve a page the response to another one, which the browser rejects"
    fix = "forward the gateway's Vary (nginx: no proxy_hide_header Vary;); a proxy that sets CORS must set it"
    return bad("vary", found, fix)


def preflight_verdict(head: ResponseHead, origin: str) -> Finding:
    """Return whether the preflight of fetch-based clients succeeds, which has no token and no cookie."""
    check = "preflight"
    if not 200 <= head.status < 300:
        found = f"OPTIONS returns {head.status}: clients that send {' or '.join(PREFLIGHT_HEADERS)} fail"
        fix = "forward OPTIONS to the gateway, before any authentication: it needs no token for them"
        return bad(check, found, fix)
    finding = origin_verdict(head, origin, check)
    if finding.level is not Level.OK:
        return finding
    missing = [name for name in PREFLIGHT_HEADERS if name not in _allowed_headers(head)]
    if missing:
        found = f"Access-Control-Allow-Headers lacks {', '.join(missing)}"
        fix = "add it to the gateway's cors.allow_headers; if it is there, a proxy responds to OPTIONS"
        return bad(check, found, fix)
    return ok(check, f"{' and '.join(PREFLIGHT_HEADERS)} are allowed, without a token")


def _allowed_headers(head: ResponseHead) -> set[str]:
    allowed = head.tokens("Access-Control-Allow-Headers")
    # The star allows all headers but authorization; with credentials it is a header name.
    if "*" in allowed and not head.get(_CREDENTIALS):
        return allowed | set(PREFLIGHT_HEADERS) - {"authorization"}
    return allowed
