"""The command's options, and its run."""

import argparse
import asyncio
import json
import os
import ssl
import sys
from collections import Counter
from dataclasses import asdict
from typing import TextIO

from gateway.cli.doctor import network
from gateway.cli.doctor.finding import Finding, Level
from gateway.cli.doctor.probe import Walk
from gateway.cli.doctor.target import Target
from gateway.cli.doctor.timeouts import COMMON_TIMEOUT, Patience
from gateway.config.model.origins import normalise
from gateway.config.model.units import parse_duration

# Findings to text, a line each as they come, or to one JSON document.

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


_INTERRUPTED = 130
"""The exit status that shells give to what SIGINT ended."""

EPILOG = """exit status:
  0    nothing is bad
  1    something is
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser. Wrong values are told by it, and never repeated."""
    usual = Patience()
    parser.add_argument("url", metavar="URL", type=_url, help="a stream's: https://host/events/channel")
    parser.add_argument(
        "--origin",
        metavar="ORIGIN",
        type=_origin,
        help="the page that reads it, for CORS: https://app.example.com",
    )
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        dest="token",
        type=_token,
        help="the environment variable that holds a bearer token",
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=_seconds,
        default=usual.listen,
        help=f"how long to listen; default {usual.listen:g}: longer than the common"
        f" proxy timeout of {COMMON_TIMEOUT:g} s",
    )
    parser.add_argument(
        "--heartbeat",
        metavar="DURATION",
        type=_duration,
        default=usual.heartbeat,
        help=f"timeouts.heartbeat of the gateway; default {usual.heartbeat:g}s",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        dest="context",
        type=_context,
        help="certificates to trust beside the system's, as PEM",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document at the end, in place of lines")


def run(options: argparse.Namespace) -> int:
    """Examine and return the exit status: 0 nothing is bad, 1 something is, 130 interrupted."""
    target: Target = Target.parse(options.url, origin=options.origin, token=options.token)
    patience = Patience(listen=options.seconds, heartbeat=options.heartbeat)
    context = options.context or network.trusting(None)
    report = Report(target, sys.stdout, as_json=options.json)
    report.begin(patience.listen)
    try:
        asyncio.run(Walk(target, report.tell, context, patience).run())
    except KeyboardInterrupt:
        report.finish()
        return _INTERRUPTED
    return report.finish()


def _url(text: str) -> str:
    # argparse would repeat the text of a ValueError's argument, which may hold a ticket.
    try:
        Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _origin(text: str) -> str:
    try:
        origin = normalise(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if "*" in origin:
        raise argparse.ArgumentTypeError("name one page: https://app.example.com")
    return origin


def _token(name: str) -> str:
    token = os.environ.get(name, "").strip()
    if not token:
        raise argparse.ArgumentTypeError(
            "the environment has no such variable, or it is empty: export it first"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise argparse.ArgumentTypeError("what the variable holds cannot be a bearer token")
    return token


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("must be from 1 to 86400")
    return seconds


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _context(file: str) -> ssl.SSLContext:
    try:
        return network.trusting(file)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        raise argparse.ArgumentTypeError(f"{file}: {network.reason(error)}") from None
