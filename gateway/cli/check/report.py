"""What was found, printed: for people, as one JSON document, or as annotations of a pull request on GitHub.

No text that comes from elsewhere (a file, a server) gets a control character onto a terminal, or a line of
its own into a runner's log.
"""

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from gateway.cli.doctor.finding import Finding, Level
from gateway.config.loader.faults import Located, dotted, printable
from gateway.config.loader.load import Reading
from gateway.config.model.config import Config
from gateway.config.model.paths import SQLITE_URL
from gateway.core.text import safe_lines

_LONGEST = 2000
"""Characters of one text: some of it is a stranger's."""


class Form:
    """One form of output. Each method prints at once, or keeps it for `finish`."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    def unreadable(self, file: str, message: str) -> None:
        """There is no file, or no text in it."""
        raise NotImplementedError

    def reading(self, reading: Reading, is_strict: bool) -> None:
        """What is wrong with the file, or that it is good."""
        raise NotImplementedError

    def explained(self, text: str) -> None:
        """What the file says."""
        raise NotImplementedError

    def reached(self, findings: Sequence[Finding]) -> None:
        """What was tried, and what came of it."""
        raise NotImplementedError

    def finish(self, is_good: bool) -> None:
        """Nothing more comes."""


class Text(Form):
    """For people: mistakes and warnings on stderr, what was asked for on stdout."""

    def unreadable(self, file: str, message: str) -> None:
        self._say(message, self._err)

    def reading(self, reading: Reading, is_strict: bool) -> None:
        for each in (*reading.faults, *reading.warnings):
            self._say(each.render(reading.file), self._err)
        config = reading.config
        if config is None:
            self._say(f"{reading.file}: {_count(len(reading.faults), 'mistake')}", self._err)
            return
        warned = f", {_count(len(reading.warnings), 'warning')}" if reading.warnings else ""
        if is_strict and reading.warnings:
            self._say(f"{reading.file}: {_count(len(reading.warnings), 'warning')} (--strict)", self._err)
            return
        channels, sources = len(config.channels), len(config.sources)
        held = f"{_count(channels, 'channel')} from {_count(sources, 'source')}"
        self._say(f"{reading.file}: good; {held}{warned}", self._out)
        if (log := log_file(config)) is not None:
            self._say(f"{reading.file}: the log is {log}", self._out)

    def explained(self, text: str) -> None:
        self._say(f"\n{text}", self._out)

    def reached(self, findings: Sequence[Finding]) -> None:
        width = max((len(each.check) for each in findings), default=0)
        self._say("", self._out)
        for each in findings:
            self._say(f"{each.level:<5} {_clean(each.check):<{width}} {_clean(each.found)}", self._out)
            if each.mend:
                self._say(f"{'':<5} {'':<{width}} -> {_clean(each.mend)}", self._out)
        bad = sum(each.level is Level.BAD for each in findings)
        if bad:
            self._say(f"{bad} of {len(findings)} cannot be used", self._err)

    def _say(self, text: str, file: TextIO) -> None:
        print(safe_lines(text), file=file, flush=True)


class Json(Form):
    """One document on stdout, for programs: docs/check.md says what is in it."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(out, err)
        self._told: dict[str, Any] = {"file": "", "good": False, "errors": [], "warnings": []}

    def unreadable(self, file: str, message: str) -> None:
        self._told["file"] = file
        self._told["errors"] = [
            {"line": 1, "column": 1, "path": "", "message": message, "source": None},
        ]

    def reading(self, reading: Reading, is_strict: bool) -> None:
        self._told["file"] = reading.file
        self._told["errors"] = [_entry(each) for each in reading.faults]
        self._told["warnings"] = [{"code": each.fault.code, **_entry(each)} for each in reading.warnings]
        if reading.config is not None:
            self._told["channels"] = list(reading.config.channels)
            self._told["sources"] = list(reading.config.sources)
            self._told["log"] = log_file(reading.config)

    def explained(self, text: str) -> None:
        self._told["explained"] = text

    def reached(self, findings: Sequence[Finding]) -> None:
        self._told["reached"] = [
            {
                "level": each.level.value,
                "what": _clean(each.check),
                "found": _clean(each.found),
                "mend": _clean(each.mend),
            }
            for each in findings
        ]

    def finish(self, is_good: bool) -> None:
        self._told["good"] = is_good
        text = json.dumps(self._told, indent=2, ensure_ascii=False)
        print(safe_lines(text), file=self._out, flush=True)


class Github(Form):
    """Workflow commands on stdout: a runner shows each beside its line in the pull request."""

    def unreadable(self, file: str, message: str) -> None:
        self._command("error", message, file=file, title="sse-gateway check")

    def reading(self, reading: Reading, is_strict: bool) -> None:
        for level, entries in (("error", reading.faults), ("warning", reading.warnings)):
            for each in entries:
                self._command(
                    "error" if is_strict else level,
                    each.fault.message,
                    file=reading.file,
                    line=each.line,
                    col=each.column,
                    title=dotted(each.fault.path) + (f" [{each.fault.code}]" if each.fault.code else ""),
                )

    def explained(self, text: str) -> None:
        print(safe_lines(text), file=self._out, flush=True)

    def reached(self, findings: Sequence[Finding]) -> None:
        levels = {Level.BAD: "error", Level.WARN: "warning"}
        for each in findings:
            if each.level in levels:
                mend = f"; {each.mend}" if each.mend else ""
                self._command(levels[each.level], _clean(each.found + mend), title=_clean(each.check))

    def _command(self, level: str, message: str, **properties: Any) -> None:
        given = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value)
        print(f"::{level} {given}::{_data(message)}", file=self._out, flush=True)


FORMATS: dict[str, type[Form]] = {"text": Text, "json": Json, "github": Github}


class Report:
    """Takes what is found, and knows the exit status."""

    def __init__(
        self,
        form: type[Form],
        *,
        is_strict: bool,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self._form = form(out or sys.stdout, err or sys.stderr)
        self._is_strict = is_strict
        self._is_good = True

    def unreadable(self, file: str, message: str) -> int:
        """Tell that there is nothing to check, and return the exit status."""
        self._is_good = False
        self._form.unreadable(file, message)
        return self.finish()

    def reading(self, reading: Reading) -> None:
        """Tell what is wrong with the file, and what is rarely meant."""
        if reading.config is None or (self._is_strict and reading.warnings):
            self._is_good = False
        self._form.reading(reading, self._is_strict)

    def explained(self, text: str) -> None:
        """Tell what the file says."""
        self._form.explained(text)

    def reached(self, findings: Sequence[Finding]) -> None:
        """Tell what was tried."""
        levels = {each.level for each in findings}
        if Level.BAD in levels or (self._is_strict and Level.WARN in levels):
            self._is_good = False
        self._form.reached(findings)

    def finish(self) -> int:
        """Return the exit status."""
        self._form.finish(self._is_good)
        return 0 if self._is_good else 1


def log_file(config: Config) -> str | None:
    """Return the absolute path of the log, where it is a file."""
    sqlite = re.fullmatch(SQLITE_URL, config.broker.url.get_secret_value(), re.DOTALL)
    return sqlite[1] if sqlite is not None else None


def _entry(each: Located) -> dict[str, Any]:
    return {
        "line": each.line,
        "column": each.column,
        "path": dotted(each.fault.path),
        "message": each.fault.message,
        "source": each.source,
    }


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _clean(text: str) -> str:
    seen = printable(text)
    return seen if len(seen) <= _LONGEST else f"{seen[:_LONGEST]}…"


def _data(text: str) -> str:
    """Escape a message as the runner's own toolkit does (actions/toolkit, command.ts)."""
    return safe_lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
