"""Colours. Pure."""

from collections.abc import Mapping
from typing import Literal

Colour = Literal["dim", "cyan", "green", "yellow", "red"]
When = Literal["auto", "always", "never"]

_CODES: Mapping[Colour, str] = {"dim": "2", "cyan": "36", "green": "32", "yellow": "33", "red": "1;31"}


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
