"""What was found, printed: for people, as one JSON document, or as annotations of a pull request on GitHub.

No text that comes from elsewhere (a file, a server) gets a control character onto a terminal, or a line of
its own into a runner's log.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from gateway.cli.finding import Finding, Level
from gateway.config.loader.issues import LocatedIssue, format_path
from gateway.config.loader.load import LoadResult
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.core.sanitize import escape_unprintable_lines, replace_unprintable

_MAX_TEXT_CHARS = 2000
"""Characters of one text: some of it is a stranger's."""


class ReportWriter:
    """One form of output. Each method prints at once, or keeps it for `finish`."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    def write_unreadable(self, file: str, message: str) -> None:
        """There is no file, or no text in it."""
        raise NotImplementedError

    def write_result(self, reading: LoadResult, is_strict: bool) -> None:
        """What is wrong with the file, or that it is good."""
        raise NotImplementedError

    def write_explanation(self, text: str) -> None:
        """What the file says."""
        raise NotImplementedError

    def write_findings(self, findings: Sequence[Finding]) -> None:
        """What was tried, and what came of it."""
        raise NotImplementedError

    def finish(self, is_good: bool) -> None:
        """Nothing more comes."""


class TextWriter(ReportWriter):
    """For people: mistakes and warnings on stderr, what was asked for on stdout."""

    def write_unreadable(self, file: str, message: str) -> None:
        self._print(message, self._err)

    def write_result(self, reading: LoadResult, is_strict: bool) -> None:
        for each in (*reading.errors, *reading.warnings):
            self._print(each.render(reading.file), self._err)
        config = reading.config
        if config is None:
            self._print(f"{reading.file}: {_pluralize(len(reading.errors), 'error')}", self._err)
            return
        warned = f", {_pluralize(len(reading.warnings), 'warning')}" if reading.warnings else ""
        if is_strict and reading.warnings:
            self._print(
                f"{reading.file}: {_pluralize(len(reading.warnings), 'warning')} (--strict)", self._err
            )
            return
        channels, sources = len(config.channels), len(config.sources)
        held = f"{_pluralize(channels, 'channel')} from {_pluralize(sources, 'source')}"
        self._print(f"{reading.file}: good; {held}{warned}", self._out)
        if (log := sqlite_log_path(config)) is not None:
            self._print(f"{reading.file}: the log is {log}", self._out)

    def write_explanation(self, text: str) -> None:
        self._print(f"\n{text}", self._out)

    def write_findings(self, findings: Sequence[Finding]) -> None:
        width = max((len(each.check) for each in findings), default=0)
        self._print("", self._out)
        for each in findings:
            self._print(
                f"{each.level:<5} {_sanitize(each.check):<{width}} {_sanitize(each.message)}", self._out
            )
            if each.fix:
                self._print(f"{'':<5} {'':<{width}} -> {_sanitize(each.fix)}", self._out)
        bad = sum(each.level is Level.BAD for each in findings)
        if bad:
            self._print(f"{bad} of {len(findings)} cannot be used", self._err)

    def _print(self, text: str, file: TextIO) -> None:
        print(escape_unprintable_lines(text), file=file, flush=True)


class JsonWriter(ReportWriter):
    """One document on stdout, for programs: docs/check.md says what is in it."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self._document: dict[str, Any] = {"file": "", "good": False, "errors": [], "warnings": []}

    def write_unreadable(self, file: str, message: str) -> None:
        self._document["file"] = file
        self._document["errors"] = [
            {"line": 1, "column": 1, "path": "", "message": message, "source": None},
        ]

    def write_result(self, reading: LoadResult, is_strict: bool) -> None:
        self._document["file"] = reading.file
        self._document["errors"] = [_issue_entry(each) for each in reading.errors]
        self._document["warnings"] = [
            {"code": each.issue.warning_code, **_issue_entry(each)} for each in reading.warnings
        ]
        if reading.config is not None:
            self._document["channels"] = list(reading.config.channels)
            self._document["sources"] = list(reading.config.sources)
            self._document["log"] = sqlite_log_path(reading.config)

    def write_explanation(self, text: str) -> None:
        self._document["explained"] = text

    def write_findings(self, findings: Sequence[Finding]) -> None:
        self._document["reached"] = [
            {
                "level": each.level.value,
                "what": _sanitize(each.check),
                "message": _sanitize(each.message),
                "fix": _sanitize(each.fix),
            }
            for each in findings
        ]

    def finish(self, is_good: bool) -> None:
        self._document["good"] = is_good
        text = json.dumps(self._document, indent=2, ensure_ascii=False)
        print(escape_unprintable_lines(text), file=self._out, flush=True)


class GithubWriter(ReportWriter):
    """Workflow commands on stdout: a runner shows each beside its line in the pull request."""

    def write_unreadable(self, file: str, message: str) -> None:
        self._print_command("error", message, file=file, title="sse-gateway check")

    def write_result(self, reading: LoadResult, is_strict: bool) -> None:
        for level, entries in (("error", reading.errors), ("warning", reading.warnings)):
            for each in entries:
                self._print_command(
                    "error" if is_strict else level,
                    each.issue.message,
                    file=reading.file,
                    line=each.line,
                    col=each.column,
                    title=format_path(each.issue.path)
                    + (f" [{each.issue.warning_code}]" if each.issue.warning_code else ""),
                )

    def write_explanation(self, text: str) -> None:
        print(escape_unprintable_lines(text), file=self._out, flush=True)

    def write_findings(self, findings: Sequence[Finding]) -> None:
        levels = {Level.BAD: "error", Level.WARN: "warning"}
        for each in findings:
            if each.level in levels:
                fix = f"; {each.fix}" if each.fix else ""
                self._print_command(
                    levels[each.level], _sanitize(each.message + fix), title=_sanitize(each.check)
                )

    def _print_command(self, level: str, message: str, **properties: Any) -> None:
        given = ",".join(
            f"{name}={_escape_property(str(value))}" for name, value in properties.items() if value
        )
        print(f"::{level} {given}::{_escape_message(message)}", file=self._out, flush=True)


FORMATS: dict[str, type[ReportWriter]] = {"text": TextWriter, "json": JsonWriter, "github": GithubWriter}


class CheckReport:
    """Takes what is found, and knows the exit status."""

    def __init__(
        self,
        writer_class: type[ReportWriter],
        *,
        is_strict: bool,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self._writer = writer_class(out or sys.stdout, err or sys.stderr)
        self._is_strict = is_strict
        self._is_good = True

    def add_unreadable(self, file: str, message: str) -> int:
        """Tell that there is nothing to check, and return the exit status."""
        self._is_good = False
        self._writer.write_unreadable(file, message)
        return self.finish()

    def add_result(self, reading: LoadResult) -> None:
        """Tell what is wrong with the file, and what is rarely meant."""
        if reading.config is None or (self._is_strict and reading.warnings):
            self._is_good = False
        self._writer.write_result(reading, self._is_strict)

    def add_explanation(self, text: str) -> None:
        """Tell what the file says."""
        self._writer.write_explanation(text)

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Tell what was tried."""
        levels = {each.level for each in findings}
        if Level.BAD in levels or (self._is_strict and Level.WARN in levels):
            self._is_good = False
        self._writer.write_findings(findings)

    def finish(self) -> int:
        """Return the exit status."""
        self._writer.finish(self._is_good)
        return 0 if self._is_good else 1


def sqlite_log_path(config: Config) -> str | None:
    """Return the absolute path of the log, where it is a file."""
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
    seen = replace_unprintable(text)
    return seen if len(seen) <= _MAX_TEXT_CHARS else f"{seen[:_MAX_TEXT_CHARS]}…"


def _escape_message(text: str) -> str:
    """Escape a message as the runner's own toolkit does (actions/toolkit, command.ts)."""
    return escape_unprintable_lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escape_property(text: str) -> str:
    return _escape_message(text).replace(":", "%3A").replace(",", "%2C")
