"""Prints the results of ``check``: as text, as one JSON document, or as annotations of a GitHub pull request.

No text of a file or a server brings a control character to a terminal, or a line of its own into the log of
a CI runner.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TextIO

from gateway.cli.finding import Finding, Level, finding_lines
from gateway.config.loader.issues import LocatedIssue, format_path
from gateway.config.loader.load import LoadResult
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.core.sanitize import escape_unprintable_lines, replace_unprintable

_MAX_TEXT_CHARS = 2000
"""Longest text of a finding: servers contribute to it."""


class ReportWriter:
    """One output format. Each method prints at once, or collects for `finish`."""

    def write_unreadable(self, file: str, message: str) -> None:
        """Report a file that cannot be read."""
        raise NotImplementedError

    def write_result(self, result: LoadResult, is_strict: bool) -> None:
        """Report errors and warnings, or that the file is valid."""
        raise NotImplementedError

    def write_explanation(self, text: str) -> None:
        """Print the description of the configuration."""
        print(escape_unprintable_lines(text), flush=True)

    def write_findings(self, findings: Sequence[Finding]) -> None:
        """Report the findings of ``--connect``."""
        raise NotImplementedError

    def finish(self, is_good: bool) -> None:
        """End the report."""


class TextWriter(ReportWriter):
    """For people: errors and warnings on standard error, results on standard output."""

    def write_unreadable(self, file: str, message: str) -> None:
        self._print(message, sys.stderr)

    def write_result(self, result: LoadResult, is_strict: bool) -> None:
        for each in (*result.errors, *result.warnings):
            self._print(each.render(result.file), sys.stderr)
        config = result.config
        if config is None:
            self._print(f"{result.file}: {_pluralize(len(result.errors), 'error')}", sys.stderr)
            return
        warned = f", {_pluralize(len(result.warnings), 'warning')}" if result.warnings else ""
        if is_strict and result.warnings:
            self._print(
                f"{result.file}: {_pluralize(len(result.warnings), 'warning')} (--strict)", sys.stderr
            )
            return
        channels, sources = len(config.channels), len(config.sources)
        held = f"{_pluralize(channels, 'channel')} from {_pluralize(sources, 'source')}"
        self._print(f"{result.file}: good; {held}{warned}")
        if (log := sqlite_log_path(config)) is not None:
            self._print(f"{result.file}: the log is {log}")

    def write_explanation(self, text: str) -> None:
        self._print(f"\n{text}")

    def write_findings(self, findings: Sequence[Finding]) -> None:
        width = max((len(each.check) for each in findings), default=0)
        self._print("")
        for each in findings:
            self._print("\n".join(finding_lines(_sanitized(each), width)))
        bad = sum(each.level is Level.BAD for each in findings)
        if bad:
            self._print(f"{bad} of {len(findings)} cannot be used", sys.stderr)

    def _print(self, text: str, file: TextIO | None = None) -> None:
        print(escape_unprintable_lines(text), file=file, flush=True)


class JsonWriter(ReportWriter):
    """One document on standard output, for programs: docs/check.md describes it."""

    def __init__(self) -> None:
        self._document: dict[str, Any] = {"file": "", "good": False, "errors": [], "warnings": []}

    def write_unreadable(self, file: str, message: str) -> None:
        self._document["file"] = file
        self._document["errors"] = [
            {"line": 1, "column": 1, "path": "", "message": message, "source": None},
        ]

    def write_result(self, result: LoadResult, is_strict: bool) -> None:
        self._document["file"] = result.file
        self._document["errors"] = [_issue_entry(each) for each in result.errors]
        self._document["warnings"] = [
            {"code": each.issue.warning_code, **_issue_entry(each)} for each in result.warnings
        ]
        if result.config is not None:
            self._document["channels"] = list(result.config.channels)
            self._document["sources"] = list(result.config.sources)
            self._document["log"] = sqlite_log_path(result.config)

    def write_explanation(self, text: str) -> None:
        self._document["explained"] = text

    def write_findings(self, findings: Sequence[Finding]) -> None:
        self._document["reached"] = [
            {"level": each.level.value, "what": each.check, "message": each.message, "fix": each.fix}
            for each in map(_sanitized, findings)
        ]

    def finish(self, is_good: bool) -> None:
        self._document["good"] = is_good
        text = json.dumps(self._document, indent=2, ensure_ascii=False)
        print(escape_unprintable_lines(text), flush=True)


class GithubWriter(ReportWriter):
    """Workflow commands on standard output: a runner shows each beside its line of the pull request."""

    def write_unreadable(self, file: str, message: str) -> None:
        self._print_command("error", message, file=file, title="sse-gateway check")

    def write_result(self, result: LoadResult, is_strict: bool) -> None:
        for level, entries in (("error", result.errors), ("warning", result.warnings)):
            for each in entries:
                self._print_command(
                    "error" if is_strict else level,
                    each.issue.message,
                    file=result.file,
                    line=each.line,
                    col=each.column,
                    title=format_path(each.issue.path)
                    + (f" [{each.issue.warning_code}]" if each.issue.warning_code else ""),
                )

    def write_findings(self, findings: Sequence[Finding]) -> None:
        levels = {Level.BAD: "error", Level.WARN: "warning"}
        for each in map(_sanitized, findings):
            if each.level in levels:
                fix = f"; {each.fix}" if each.fix else ""
                self._print_command(levels[each.level], each.message + fix, title=each.check)

    def _print_command(self, level: str, message: str, **properties: Any) -> None:
        given = ",".join(
            f"{name}={_escape_property(str(value))}" for name, value in properties.items() if value
        )
        print(f"::{level} {given}::{_escape_message(message)}", flush=True)


FORMATS: dict[str, type[ReportWriter]] = {"text": TextWriter, "json": JsonWriter, "github": GithubWriter}


def sqlite_log_path(config: Config) -> str | None:
    """Return the absolute path of the log, if it is a file."""
    sqlite = re.fullmatch(SQLITE_URL, config.broker.url.get_secret_value(), re.DOTALL)
    return sqlite[1] if sqlite is not None else None


def _issue_entry(each: LocatedIssue) -> dict[str, Any]:
    return {
        "line": each.line,
        "column": each.column,
        "path": format_path(each.issue.path),
        "message": each.issue.message,
        "source": each.source_line,
    }


def _pluralize(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _sanitize(text: str) -> str:
    clean = replace_unprintable(text)
    return clean if len(clean) <= _MAX_TEXT_CHARS else f"{clean[:_MAX_TEXT_CHARS]}…"


def _sanitized(finding: Finding) -> Finding:
    return replace(
        finding,
        check=_sanitize(finding.check),
        message=_sanitize(finding.message),
        fix=_sanitize(finding.fix),
    )


def _escape_message(text: str) -> str:
    """Escape a message as the runner's own toolkit does (actions/toolkit, command.ts)."""
    return escape_unprintable_lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_message(text).replace(":", "%3A").replace(",", "%2C")
