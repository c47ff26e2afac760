"""Matches web origins against a list of rules (RFC 6454; WHATWG Fetch, CORS protocol). Pure.

A rule is an exact origin, an origin with one leading wildcard label (``https://*.example.com``, which
stands for exactly one label), or ``*`` alone. An Origin header is compared as text: browsers send
it in lower case, in punycode and without a default port, so any difference is another origin.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

MAX_ORIGIN_CHARS = 500
"""Longest origin that is matched, in characters: a scheme, a host name of 253 and a port are far less."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_HOST = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+|\[[0-9a-f:.]+\]", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_-]+", re.ASCII)
_PRINTABLE = re.compile(r"[\x21-\x7e]+", re.ASCII)

CROSS_ORIGIN_FETCH_SITES = ("cross-site", "same-site")
"""``Sec-Fetch-Site`` of a request that a page of another origin makes (Fetch Metadata, W3C)."""


def normalize_origin_rule(rule: str) -> str:
    """Return a rule in the form that browsers send. Raises ValueError with a message for the operator."""
    if rule == "*":
        return rule
    if rule.lower() == "null":
        raise ValueError("'null' is what every sandboxed page sends, so it would allow them all; remove it")
    if rule.lower().startswith("file:"):
        raise ValueError(
            "a page that was opened from a file sends the origin 'null', as every sandboxed page does, so it"
            " cannot be allowed alone; serve the page (python3 -m http.server 8000) and allow"
            " http://localhost:8000"
        )
    scheme, separator, rest = rule.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"an origin needs a scheme; write 'https://{rule}'")
    if not _SCHEME.fullmatch(scheme):
        raise ValueError(f"{scheme!r} is not a scheme")
    if rest.endswith("/") and "/" not in rest[:-1]:
        raise ValueError(f"an origin has no trailing slash; write {rule[:-1]!r}")
    if any(char in rest for char in "/?#"):
        origin = f"{scheme}://{re.split('[/?#]', rest)[0]}"
        raise ValueError(f"an origin has no path; write {origin!r}")
    if "@" in rest:
        raise ValueError("an origin has no user or password")
    wildcard, rest = ("*.", rest[2:]) if rest.startswith("*.") else ("", rest)
    if "*" in rest:
        raise ValueError("a wildcard stands for the whole first label: https://*.example.com")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        port = parts.port
    except ValueError:
        raise ValueError("the port must be a number from 1 to 65535") from None
    host = rest[: rest.rindex(":")] if port is not None else rest.rstrip(":")
    try:
        host = host.lower() if host.startswith("[") else host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host name") from None
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")
    if wildcard and "." not in host:
        raise ValueError(f"'*.{host}' would allow everybody's site; name at least 'https://*.example.{host}'")
    suffix = "" if port is None or port == _DEFAULT_PORTS.get(scheme) else f":{port}"
    return f"{scheme}://{wildcard}{host}{suffix}"


class OriginRules:
    """A list of parsed rules."""

    __slots__ = ("_allows_any", "_exact", "_wildcards", "rules")

    def __init__(self, rules: Iterable[str]) -> None:
        self.rules = tuple(normalize_origin_rule(rule) for rule in rules)
        self._allows_any = "*" in self.rules
        self._exact = frozenset(rule for rule in self.rules if "*" not in rule)
        self._wildcards = tuple(
            (scheme + "://", "." + host)
            for scheme, _, host in (rule.partition("://*.") for rule in self.rules if "://*." in rule)
        )

    def allows(self, origin: str) -> bool:
        """Tell whether a page of ``origin`` (the header's value) may read."""
        if origin in self._exact:
            return True
        if len(origin) > MAX_ORIGIN_CHARS:
            return False
        if self._allows_any:
            return _PRINTABLE.fullmatch(origin) is not None
        for scheme, suffix in self._wildcards:
            if origin.startswith(scheme) and origin.endswith(suffix):
                label = origin[len(scheme) : -len(suffix)]
                if _LABEL.fullmatch(label):
                    return True
        return False
