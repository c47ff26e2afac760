"""Verdicts on the head of an answer: status, redirect, type, compression, words to proxies. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gateway.cli.finding import Finding, bad, ok, warn
from gateway.config.model.auth import RESERVED_QUERY_NAMES

REDIRECTS = (301, 302, 303, 307, 308)

MAX_SHOWN_NAME_CHARS = 40
"""Characters of a query name that is shown."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status and headers of an answer, doubled headers kept."""

    status: int
    headers: Sequence[tuple[str, str]]

    def get_all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for each, value in self.headers if each.lower() == name.lower()]

    def get(self, name: str) -> str:
        """Return a header as lists are joined, empty if it is not there."""
        return ", ".join(self.get_all(name))

    def tokens(self, name: str) -> set[str]:
        """Return the members of a list header in lower case."""
        return {word.strip().lower() for word in self.get(name).split(",")} - {""}


def redirect_verdict(status: int, final: str | None) -> Finding:
    """Return what a redirect means; ``final`` is where it ends, None if nowhere."""
    if final is None:
        return bad(
            "redirect", f"{status}, and following it leads nowhere", "let the proxy answer this URL itself"
        )
    return bad(
        "redirect",
        f"{status} to {final}: an EventSource follows it, and from then on reconnects to that URL only",
        f"give clients {final}, and examine that",
    )


def status_verdict(head: ResponseHead, body: bytes, *, has_token: bool) -> Finding:
    """Return what the status means to an EventSource."""
    if head.status == 200:
        return ok("status", "200")
    if head.status == 204:
        return bad(
            "status",
            "204 tells an EventSource to stop for good",
            "sse-gateway does not answer it: see what stands in front of it",
        )
    code, message = _parse_error(body)
    said = f"{code}: {message}" if code else message
    found = f"{head.status} ends an EventSource for good" + (f"; it says {said}" if said else "")
    return bad("status", found, _status_fix(head.status, code, has_token))


def _parse_error(body: bytes) -> tuple[str, str]:
    """Return the gateway's code and message, or no code and a foreign body."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        return told["error"], str(told.get("message", ""))
    # Whole: a secret that is cut through is not found again. The report shortens it.
    return "", " ".join(body.decode("utf-8", "replace").split())


def _status_fix(status: int, code: str, has_token: bool) -> str:
    if status == 401:
        return "another token is needed" if has_token else "give a token: --token-env NAME"
    if code == "origin_refused":
        return "add the origin to the list that it names, or ask with another --origin"
    if status == 403:
        return "this token may not read the channel: see the channel's access"
    if status == 404:
        return (
            "ask for a declared channel"
            if code
            else "the gateway was not reached: check the proxy's path to it"
        )
    if status == 429:
        return "too many requests: raise the limit of what answers so"
    if status in (502, 503, 504):
        return "the proxy does not reach the gateway: check its upstream, and the gateway's /readyz"
    return "docs/http.md lists the gateway's answers" if code else "see the log of what answers here"


def type_verdict(head: ResponseHead) -> Finding:
    """Return whether an EventSource takes it for a stream."""
    value = head.get("Content-Type")
    kind, *parameters = (part.strip().lower() for part in value.split(";"))
    charset = next(
        (each.partition("=")[2].strip('"') for each in parameters if each.startswith("charset=")), ""
    )
    if kind != "text/event-stream":
        return bad(
            "content type",
            f"{value or 'none'}: an EventSource gives up for good",
            "let the proxy pass the gateway's answer; a page here means that the path leads elsewhere",
        )
    if charset not in ("", "utf-8"):
        return warn(
            "content type",
            f"{value}: streams are UTF-8, and clients that believe the header show other letters",
            "take the charset out of the proxy (nginx: charset off;)",
        )
    return ok("content type", value)


def compression_verdict(head: ResponseHead) -> Finding:
    """Return whether something between here and the gateway compresses the stream."""
    encodings = head.tokens("Content-Encoding") - {"identity"}
    if encodings:
        return bad(
            "compression",
            f"the stream is compressed ({', '.join(sorted(encodings))}): compressors hold events back",
            "switch it off for event streams (nginx: gzip off; or no text/event-stream in gzip_types)",
        )
    return ok("compression", "none, though it was offered")


def headers_verdict(head: ResponseHead) -> Finding:
    """Return whether the words to proxies arrive, so that those on the way can heed them."""
    cache = head.tokens("Cache-Control")
    if not cache & {"no-cache", "no-store"}:
        return warn(
            "headers",
            f"Cache-Control is {head.get('Cache-Control') or 'missing'}: caches may keep the stream",
            "pass the gateway's Cache-Control on (it is: no-cache, no-transform)",
        )
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
    return warn(
        "headers",
        "X-Accel-Buffering is missing: a proxy took it away, and an nginx before that one buffers",
        "pass it on, or set proxy_buffering off; in every nginx on the way",
    )


def query_verdict(name: str) -> Finding:
    """Judge a query name that the gateway has no meaning for."""
    meant = next(iter(get_close_matches(name.lower(), RESERVED_QUERY_NAMES, 1, 0.75)), None)
    shown = (
        name
        if name.isprintable() and len(name) <= MAX_SHOWN_NAME_CHARS
        else f"a name of {len(name)} characters"
    )
    remedy = f"did you mean {meant}=?" if meant else "docs/http.md lists the names"
    return warn("query", f"the gateway ignores {shown}, unless auth.query or forward auth reads it", remedy)
