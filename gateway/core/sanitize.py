"""Makes untrusted text safe to show in terminals and logs, which interpret control characters. Pure."""

import json
import re
from urllib.parse import urlsplit, urlunsplit

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Control characters (C0, C1), line and paragraph separators, bidirectional and other invisible formatting,
and lone surrogates."""


def escape_unprintable(text: str) -> str:
    """Return a text as one line without characters that control a terminal, hide or reorder text.

    They are written as JSON escapes, so JSON stays valid and equal.
    """
    # Most texts are printable as a whole and need no search: log lines (herd, storm).
    return text if text.isprintable() else _UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def escape_unprintable_lines(text: str) -> str:
    """Return a text with `escape_unprintable` applied, and its line ends and tabs kept."""
    return "\n".join("\t".join(map(escape_unprintable, line.split("\t"))) for line in text.split("\n"))


def replace_unprintable(text: str) -> str:
    """Return a text of equal length, in one line, with U+FFFD for each character that is not printable."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


REDACTED = "…"


def redact_url(url: str) -> str:
    """Return a URL without user, password, fragment and the values of its query, which may be secrets."""
    parts = urlsplit(url)
    query = "&".join(
        f"{name}={REDACTED}" if separator else REDACTED
        for name, separator, _ in (piece.partition("=") for piece in parts.query.split("&") if piece)
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
