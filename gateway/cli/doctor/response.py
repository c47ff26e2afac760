"""Verdicts on the head of a response: status, redirect, type, compression, headers for proxies. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gateway.cli.finding import Finding, bad, ok, warn
from gateway.cli.http_client import parse_error
from gateway.config.model.auth import RESERVED_QUERY_NAMES

REDIRECTS = (301, 302, 303, 307, 308)

MAX_SHOWN_NAME_CHARS = 40
"""Longest query name that is printed."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of a response; repeated headers are kept."""

    status: int
    headers: Sequence[tuple[str, str]]

    def get_all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for each, value in self.headers if each.lower() == name.lower()]

    def get(self, name: str) -> str:
        """Return a header's values joined to a list, empty if it is missing."""
        return ", ".join(self.get_all(name))

    def tokens(self, name: str) -> set[str]:
        """Return the members of a list header in lower case."""
        return {word.strip().lower() for word in self.get(name).split(",")} - {""}


def redirect_verdict(status: int, final: str | None) -> Finding:
    """Return the verdict on a redirect; ``final`` is the last URL, None if that fails."""
    if final is None:
        return bad("redirect", f"{status}, and its target fails", "serve this URL without a redirect")
    found = f"{status} to {final}: an EventSource follows it, and from then on reconnects to that URL only"
    return bad("redirect", found, f"give clients {final}, and run this for that URL")


def status_verdict(head: ResponseHead, body: bytes, *, has_token: bool) -> Finding:
    """Return the meaning of the status for an EventSource."""
    if head.status == 200:
        return ok("status", "200")
    if head.status == 204:
        found = "204 ends an EventSource for good"
        return bad("status", found, "sse-gateway does not send it: check the proxy in front of it")
    code, message = parse_error(body)
    # Not shortened here: half of a secret would not be redacted.
    text = f"{code}: {message}" if code else " ".join(body.decode("utf-8", "replace").split())
    found = f"{head.status} ends an EventSource for good" + (f"; it says {text}" if text else "")
    return bad("status", found, _status_fix(head.status, code, has_token))


def _status_fix(status: int, code: str, has_token: bool) -> str:
    if status == 401:
        return "another token is needed" if has_token else "pass a token with --token-env NAME"
    if code == "origin_refused":
        return "add the origin to the list in the message, or use another --origin"
    if status == 403:
        return "this token may not read the channel: see the channel's access"
    if status == 404:
        return (
            "use a declared channel" if code else "the gateway was not reached: check the proxy's path to it"
        )
    if status == 429:
        return "raise the rate limit of the server that responds"
    if status in (502, 503, 504):
        return "the proxy does not reach the gateway: check its upstream, and the gateway's /readyz"
    return "see the status in docs/http.md" if code else "see the log of the server that responds"


def type_verdict(head: ResponseHead) -> Finding:
    """Return whether an EventSource accepts the content type."""
    value = head.get("Content-Type")
    kind, *parameters = (part.strip().lower() for part in value.split(";"))
    charset = next(
        (each.partition("=")[2].strip('"') for each in parameters if each.startswith("charset=")), ""
    )
    if kind != "text/event-stream":
        found = f"{value or 'none'}: an EventSource gives up for good"
        fix = "let the proxy forward the gateway's response; an HTML page comes from another server"
        return bad("content type", found, fix)
    if charset not in ("", "utf-8"):
        found = f"{value}: streams are UTF-8, and clients that obey the header show wrong characters"
        return warn("content type", found, "remove the charset in the proxy (nginx: charset off;)")
    return ok("content type", value)


def compression_verdict(head: ResponseHead) -> Finding:
    """Return whether a proxy compresses the stream."""
    encodings = head.tokens("Content-Encoding") - {"identity"}
    if encodings:
        found = f"the stream is compressed ({', '.join(sorted(encodings))}): compressors delay events"
        fix = "switch it off for event streams (nginx: gzip off; or no text/event-stream in gzip_types)"
        return bad("compression", found, fix)
    return ok("compression", "none, though it was accepted")


def headers_verdict(head: ResponseHead) -> Finding:
    """Return whether the headers for proxies arrive, so that each proxy can obey them."""
    cache = head.tokens("Cache-Control")
    if not cache & {"no-cache", "no-store"}:
        found = f"Cache-Control is {head.get('Cache-Control') or 'missing'}: caches may keep the stream"
        return warn("headers", found, "pass the gateway's Cache-Control on (it is: no-cache, no-transform)")
    if "no-transform" not in cache:
        return warn(
            "headers",
            f"Cache-Control ({head.get('Cache-Control')}) lacks no-transform: CDNs may compress the stream",
            "pass the gateway's Cache-Control on (it is: no-cache, no-transform)",
        )
    if head.get("X-Accel-Buffering").lower() == "no":
        return ok("headers", "Cache-Control: no-transform and X-Accel-Buffering: no arrive")
    if any(name in head.get("Server").lower() for name in ("nginx", "openresty", "tengine")):
        return ok("headers", "Cache-Control: no-transform arrives; nginx keeps X-Accel-Buffering for itself")
    found = "X-Accel-Buffering is missing: a proxy removed it, and an nginx in front of that one buffers"
    return warn("headers", found, "forward it, or set proxy_buffering off; in every nginx")


def query_verdict(name: str) -> Finding:
    """Return the verdict on a query name that the gateway ignores."""
    nearest = next(iter(get_close_matches(name.lower(), RESERVED_QUERY_NAMES, 1, 0.75)), None)
    is_shown = name.isprintable() and len(name) <= MAX_SHOWN_NAME_CHARS
    shown = name if is_shown else f"a name of {len(name)} characters"
    fix = f"did you mean {nearest}=?" if nearest else "see the names in docs/http.md"
    return warn("query", f"the gateway ignores {shown}, unless auth.query or forward auth reads it", fix)
