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
from gateway.cli.doctor.probe import Probe
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.doctor.timeouts import COMMON_PROXY_TIMEOUT_SECONDS, ProbeTimeouts
from gateway.cli.finding import Finding, Level
from gateway.config.model.origins import normalize_origin_rule
from gateway.config.model.value_types import parse_duration

# Findings to text, a line each as they come, or to one JSON document.

_CHECK_WIDTH = 13
"""Characters of the longest check's name."""

_MAX_TEXT_CHARS = 400
"""Characters of one text: some of it is a stranger's."""


class DoctorReport:
    """Takes findings; what it prints holds no secret of the target and no control character."""

    def __init__(self, target: ProbeTarget, out: TextIO, *, is_json: bool = False) -> None:
        self._target = target
        self._out = out
        self._is_json = is_json
        self._findings: list[Finding] = []

    def start(self, seconds: float) -> None:
        """Say what is examined, and for how long at most the stream is listened to."""
        if not self._is_json:
            self._print(f"{self._sanitize(self._target.display_url)}, listening for {seconds:g} s")

    def add(self, finding: Finding) -> None:
        """Take a finding, and print it."""
        clean = Finding(
            finding.level, finding.check, self._sanitize(finding.message), self._sanitize(finding.fix)
        )
        self._findings.append(clean)
        if self._is_json:
            return
        self._print(f"{clean.level:<5} {clean.check:<{_CHECK_WIDTH}} {clean.message}")
        if clean.fix:
            self._print(f"{'':<5} {'':<{_CHECK_WIDTH}} -> {clean.fix}")

    def finish(self) -> int:
        """Print the count and return the exit status: 1 if anything is bad, else 0."""
        counts = Counter(finding.level for finding in self._findings)
        if self._is_json:
            told = {
                "url": self._sanitize(self._target.display_url),
                "counts": {level.value: counts[level] for level in Level},
                "findings": [asdict(finding) for finding in self._findings],
            }
            self._print(json.dumps(told, indent=2, ensure_ascii=False))
        else:
            words = {Level.BAD: "bad", Level.WARN: "to look at", Level.OK: "ok", Level.SKIP: "not looked at"}
            self._print(", ".join(f"{counts[level]} {word}" for level, word in words.items()))
        return 1 if counts[Level.BAD] else 0

    def _sanitize(self, text: str) -> str:
        seen = "".join(char if char.isprintable() else "\ufffd" for char in self._target.redact(text))
        return seen if len(seen) <= _MAX_TEXT_CHARS else f"{seen[:_MAX_TEXT_CHARS]}…"

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


_EXIT_INTERRUPTED = 130
"""The exit status that shells give to what SIGINT ended."""

EPILOG = """exit status:
  0    nothing is bad
  1    something is
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser. Wrong values are told by it, and never repeated."""
    usual = ProbeTimeouts()
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
        default=usual.listen_seconds,
        help=f"how long to listen; default {usual.listen_seconds:g}: longer than the common"
        f" proxy timeout of {COMMON_PROXY_TIMEOUT_SECONDS:g} s",
    )
    parser.add_argument(
        "--heartbeat",
        metavar="DURATION",
        type=_duration,
        default=usual.heartbeat_seconds,
        help=f"timeouts.heartbeat of the gateway; default {usual.heartbeat_seconds:g}s",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        dest="context",
        type=_tls_context,
        help="certificates to trust beside the system's, as PEM",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document at the end, in place of lines")


def run(options: argparse.Namespace) -> int:
    """Examine and return the exit status: 0 nothing is bad, 1 something is, 130 interrupted."""
    target: ProbeTarget = ProbeTarget.parse(options.url, origin=options.origin, token=options.token)
    patience = ProbeTimeouts(listen_seconds=options.seconds, heartbeat_seconds=options.heartbeat)
    context = options.context or network.client_tls_context(None)
    report = DoctorReport(target, sys.stdout, is_json=options.json)
    report.start(patience.listen_seconds)
    try:
        asyncio.run(Probe(target, report.add, context, patience).run())
    except KeyboardInterrupt:
        report.finish()
        return _EXIT_INTERRUPTED
    return report.finish()


def _url(text: str) -> str:
    # argparse would repeat the text of a ValueError's argument, which may hold a ticket.
    try:
        ProbeTarget.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _origin(text: str) -> str:
    try:
        origin = normalize_origin_rule(text)
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


def _tls_context(file: str) -> ssl.SSLContext:
    try:
        return network.client_tls_context(file)
    except OSError as error:  # ssl.SSLError is one: the file holds no certificate
        raise argparse.ArgumentTypeError(f"{file}: {network.describe_network_error(error)}") from None
