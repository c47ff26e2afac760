"""Errors and warnings about a configuration: where, what is wrong, and how to fix it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gateway.core.errors import StartupError
from gateway.core.sanitize import replace_unprintable

ConfigPath = tuple[str | int, ...]

SECRET_KEYS = frozenset({"auth", "verify", "sasl", "secret", "bearer", "url", "admin_token"})
"""Keys whose values may be secrets, at any depth, or misspellings of one: messages do not show their text."""


@dataclass(frozen=True, slots=True)
class ConfigIssue:
    """One error, or a warning if it has a ``warning_code``.

    ``is_on_key`` points at the key of ``path`` instead of its value (at the parent if the key is missing);
    ``position`` (line, column) overrides both.
    """

    path: ConfigPath
    message: str
    is_on_key: bool = False
    position: tuple[int, int] | None = None
    warning_code: str = ""


@dataclass(frozen=True, slots=True)
class LocatedIssue:
    """An issue with its position in the file; line and column count from 1."""

    issue: ConfigIssue
    line: int
    column: int
    source_line: str | None

    def render(self, file: str) -> str:
        """Return ``file:line:column: path: message`` and, below it, the source line with a mark."""
        code, path = self.issue.warning_code, format_path(self.issue.path)
        message = replace_unprintable(f"{path}: {self.issue.message}" if path else self.issue.message)
        text = f"{file}:{self.line}:{self.column}: {f'warning: {message} [{code}]' if code else message}"
        if self.source_line is None:
            return text
        margin = " " * len(str(self.line))
        source = replace_unprintable(self.source_line)
        return f"{text}\n  {self.line} | {source}\n  {margin} | {' ' * (self.column - 1)}^"


class ConfigError(StartupError):
    """The configuration is invalid. ``errors`` holds every error that was found, in file order."""

    code = "config"

    def __init__(self, file: str, errors: Sequence[LocatedIssue]) -> None:
        self.file = file
        self.errors = tuple(errors)
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        super().__init__("\n".join([*(each.render(file) for each in self.errors), f"{file}: {count}"]))


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
    """Return a hint: the most similar known word, else all of them."""
    names = sorted(known)
    close = [name for name in names if name.lower() == word.lower()]
    close = close or get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(names)}" if names else "nothing is known here"
