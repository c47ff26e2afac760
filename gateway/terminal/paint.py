"""Colours, and text that is safe to show: a terminal obeys what it is sent, by strangers too. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Literal

Colour = Literal["dim", "cyan", "green", "yellow", "red"]
When = Literal["auto", "always", "never"]

_CODES: Mapping[Colour, str] = {"dim": "2", "cyan": "36", "green": "32", "yellow": "33", "red": "1;31"}

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""Control characters (C0, C1), those that turn the direction of text, and those that nobody sees."""


def safe(text: str) -> str:
    """Return a text as one line in which nothing commands a terminal, hides or reorders.

    What is replaced is written as JSON escapes it, so JSON stays the same JSON.
    """
    return _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], text)


def safe_lines(text: str) -> str:
    """Return a text like `safe`, in which lines and tabs stay."""
    return "\n".join("\t".join(map(safe, line.split("\t"))) for line in text.split("\n"))


def is_coloured(when: When, *, is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """Tell whether to use colours: https://no-color.org, and only on a terminal that knows them."""
    if when != "auto":
        return when == "always"
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


class Paint:
    """Puts colours around texts, or does not."""

    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, colour: Colour, text: str) -> str:
        """Return the text in a colour."""
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if self._on and text else text
