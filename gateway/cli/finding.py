"""What one check found. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: ``mend`` says what to do, and is empty where all is well."""

    level: Level
    check: str
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(Level.OK, check, found)


def warn(check: str, found: str, mend: str) -> Finding:
    """Return a finding that breaks something for some clients, or will later."""
    return Finding(Level.WARN, check, found, mend)


def bad(check: str, found: str, mend: str) -> Finding:
    """Return a finding that breaks streams."""
    return Finding(Level.BAD, check, found, mend)


def skip(check: str, why: str) -> Finding:
    """Return a line about what was not looked at."""
    return Finding(Level.SKIP, check, why)
