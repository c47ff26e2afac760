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
    """One line of the report: ``mend`` says what to do, and is empty where all is well."""

    level: Level
    check: str
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(Level.OK, check, found)


def warn(check: str, found: str, mend: str) -> Finding:
    """Return a finding that breaks streams of some clients, or will later."""
    return Finding(Level.WARN, check, found, mend)


def bad(check: str, found: str, mend: str) -> Finding:
    """Return a finding that breaks streams."""
    return Finding(Level.BAD, check, found, mend)


def skip(check: str, why: str) -> Finding:
    """Return a finding of a check that did not run."""
    return Finding(Level.SKIP, check, why)


def finding_lines(finding: Finding, width: int) -> Iterator[str]:
    """Yield a finding as one or two lines; ``width`` is that of the longest check."""
    yield f"{finding.level:<5} {finding.check:<{width}} {finding.found}"
    if finding.mend:
        yield f"{'':<5} {'':<{width}} -> {finding.mend}"
