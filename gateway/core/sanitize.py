"""Text that is safe to show: terminals, and viewers of logs, obey what strangers send. Pure."""

import json
import re
from urllib.parse import urlsplit, urlunsplit

_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Control characters (C0, C1), line and paragraph separators, what turns the direction of text (bidi), other
formatting that nobody sees, and lone surrogates."""


def escape_unprintable(text: str) -> str:
    """Return a text as one line in which nothing commands a terminal, hides or reorders.

    What is replaced is written as JSON escapes it, so JSON stays the same JSON.
    """
    # Whatever Unicode calls printable needs no search: nearly every text.
    return text if text.isprintable() else _UNPRINTABLE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def escape_unprintable_lines(text: str) -> str:
    """Return a text like `safe`, in which lines and tabs stay."""
    return "\n".join("\t".join(map(escape_unprintable, line.split("\t"))) for line in text.split("\n"))


# What of a URL may be shown: its query, and the user in front of its host, hold keys and passwords. Pure.

REDACTED = "…"


def redact_url(url: str) -> str:
    """Return a URL without the values of its query, without user, password and fragment."""
    parts = urlsplit(url)
    query = "&".join(
        f"{name}={REDACTED}" if separator else REDACTED
        for name, separator, _ in (piece.partition("=") for piece in parts.query.split("&") if piece)
    )
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
