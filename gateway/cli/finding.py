"""The result of one check of ``check --connect`` or ``doctor``. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity of a finding."""

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
    """Return a finding that needs no action."""
    return Finding(Level.OK, check, message)


def warn(check: str, message: str, fix: str) -> Finding:
    """Return a finding that breaks streams of some clients, or will later."""
    return Finding(Level.WARN, check, message, fix)


def bad(check: str, message: str, fix: str) -> Finding:
    """Return a finding that breaks streams."""
    return Finding(Level.BAD, check, message, fix)


def skip(check: str, why: str) -> Finding:
    """Return a finding of a check that did not run."""
    return Finding(Level.SKIP, check, why)


def finding_lines(finding: Finding, width: int) -> Iterator[str]:
    """Yield a finding as one or two lines; ``width`` is that of the longest check."""
    yield f"{finding.level:<5} {finding.check:<{width}} {finding.message}"
    if finding.fix:
        yield f"{'':<5} {'':<{width}} -> {finding.fix}"
