"""Findings to text, a line each as they come, or to one JSON document."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TextIO

from gateway.cli.doctor.finding import Finding, Level
from gateway.cli.doctor.target import Target

_WIDTH = 13
"""Characters of the longest check's name."""

_LONGEST = 400
"""Characters of one text: some of it is a stranger's."""


class Report:
    """Takes findings; what it prints holds no secret of the target and no control character."""

    def __init__(self, target: Target, out: TextIO, *, as_json: bool = False) -> None:
        self._target = target
        self._out = out
        self._as_json = as_json
        self._findings: list[Finding] = []

    def begin(self, seconds: float) -> None:
        """Say what is examined, and for how long at most the stream is listened to."""
        if not self._as_json:
            self._print(f"{self._clean(self._target.shown)}, listening for {seconds:g} s")

    def tell(self, finding: Finding) -> None:
        """Take a finding, and print it."""
        clean = Finding(finding.level, finding.check, self._clean(finding.found), self._clean(finding.mend))
        self._findings.append(clean)
        if self._as_json:
            return
        self._print(f"{clean.level:<5} {clean.check:<{_WIDTH}} {clean.found}")
        if clean.mend:
            self._print(f"{'':<5} {'':<{_WIDTH}} -> {clean.mend}")

    def finish(self) -> int:
        """Print the count and return the exit status: 1 if anything is bad, else 0."""
        counts = Counter(finding.level for finding in self._findings)
        if self._as_json:
            told = {
                "url": self._clean(self._target.shown),
                "counts": {level.value: counts[level] for level in Level},
                "findings": [asdict(finding) for finding in self._findings],
            }
            self._print(json.dumps(told, indent=2, ensure_ascii=False))
        else:
            words = {Level.BAD: "bad", Level.WARN: "to look at", Level.OK: "ok", Level.SKIP: "not looked at"}
            self._print(", ".join(f"{counts[level]} {word}" for level, word in words.items()))
        return 1 if counts[Level.BAD] else 0

    def _clean(self, text: str) -> str:
        seen = "".join(char if char.isprintable() else "\ufffd" for char in self._target.scrub(text))
        return seen if len(seen) <= _LONGEST else f"{seen[:_LONGEST]}…"

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)
