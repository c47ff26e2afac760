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
    """One line of the report. ``fix`` says what to do, and is empty if nothing needs to be done."""

    level: Level
    check: str
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(Level.OK, check, message)


def warn(check: str, message: str, fix: str) -> Finding:
    """Return a finding that breaks something for some clients, or will later."""
    return Finding(Level.WARN, check, message, fix)


def bad(check: str, message: str, fix: str) -> Finding:
    """Return a finding that breaks streams."""
    return Finding(Level.BAD, check, message, fix)


def skip(check: str, why: str) -> Finding:
    """Return a line about what was not looked at."""
    return Finding(Level.SKIP, check, why)
