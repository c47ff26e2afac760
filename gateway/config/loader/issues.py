"""What is wrong with a configuration: where, what, and what would be right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gateway.core.errors import StartupError

ConfigPath = tuple[str | int, ...]

SECRET_KEYS = frozenset({"auth", "verify", "sasl", "secret", "bearer", "url", "admin_token"})
"""Keys below which values may be secrets, or misspelled neighbours of one: no message shows their text."""


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """One mistake, or with a ``code`` a warning of that name. ``on_key`` points at the key of ``path``, or
    where that is missing at its mapping's, in place of the value; ``at`` (line, column) overrides both.
    """

    path: ConfigPath
    message: str
    is_on_key: bool = False
    position: tuple[int, int] | None = None
    warning_code: str = ""

    @property
    def path_and_message(self) -> str:
        """``path: what is wrong, and what would be right``."""
        path = format_path(self.path)
        return f"{path}: {self.message}" if path else self.message


@dataclass(frozen=True, slots=True)
class LocatedIssue:
    """A fault with its place in the file; line and column count from 1."""

    issue: ConfigIssue
    line: int
    column: int
    source_line: str | None

    def render(self, file: str) -> str:
        """Return ``file:line:column: path: message`` and, below it, the source line with a mark."""
        fault = self.issue
        place = f"{file}:{self.line}:{self.column}: {'warning: ' if fault.warning_code else ''}"
        text = (
            place
            + replace_unprintable(fault.path_and_message)
            + (f" [{fault.warning_code}]" if fault.warning_code else "")
        )
        if self.source_line is None:
            return text
        margin = " " * len(str(self.line))
        shown = f"  {self.line} | {replace_unprintable(self.source_line)}\n  {margin} | {' ' * (self.column - 1)}^"
        return f"{text}\n{shown}"


class ConfigError(StartupError):
    """The file cannot be used. ``faults`` holds every mistake that was found, in file order."""

    code = "config"

    def __init__(self, file: str, errors: Sequence[LocatedIssue]) -> None:
        self.file = file
        self.errors = tuple(errors)
        count = "1 mistake" if len(self.errors) == 1 else f"{len(self.errors)} mistakes"
        lines = [fault.render(file) for fault in self.errors]
        super().__init__("\n".join([*lines, f"{file}: {count}"]))


def replace_unprintable(text: str) -> str:
    """Return a text in one line, without what could steer a terminal or a build's runner."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def format_path(path: ConfigPath) -> str:
    """Return ``channels.orders.from[0].topic``; a key with a dot in it is quoted."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            name = f'"{part}"' if "." in part else part
            out += f".{name}" if out else name
    return out


def suggest_nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest known word, else all of them."""
    names = sorted(known)
    close = [name for name in names if name.lower() == word.lower()]
    close = close or get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "nothing is known here"
