"""The options, the report and the run of ``sse-gateway doctor``."""

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from typing import TextIO

from gateway.cli.arguments import is_bearer_token, parse_ca_file, parse_positive_duration
from gateway.cli.doctor.probe import Probe
from gateway.cli.doctor.streaming import COMMON_PROXY_TIMEOUT_SECONDS, ProbeTimeouts
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.finding import Finding, Level, finding_lines
from gateway.cli.http_client import client_tls_context
from gateway.config.model.origins import normalize_origin_rule

_CHECK_WIDTH = 13
"""Length of the longest name of a check."""

_MAX_TEXT_CHARS = 400
"""Longest text of a finding: servers contribute to it."""


class DoctorReport:
    """Prints findings as lines or one JSON document, without secrets and control characters."""

    def __init__(self, target: ProbeTarget, out: TextIO, *, is_json: bool = False) -> None:
        self._target = target
        self._out = out
        self._is_json = is_json
        self._findings: list[Finding] = []

    def start(self, seconds: float) -> None:
        """Print the URL, and for how long the stream is read."""
        if not self._is_json:
            self._print(f"{self._sanitize(self._target.display_url)}, listening for {seconds:g} s")

    def add(self, finding: Finding) -> None:
        """Add a finding; print it unless the output is JSON."""
        clean = Finding(
            finding.level, finding.check, self._sanitize(finding.message), self._sanitize(finding.fix)
        )
        self._findings.append(clean)
        if not self._is_json:
            self._print("\n".join(finding_lines(clean, _CHECK_WIDTH)))

    def finish(self) -> int:
        """Print the summary and return the exit status: 1 if any finding is bad, else 0."""
        counts = Counter(finding.level for finding in self._findings)
        if self._is_json:
            document = {
                "url": self._sanitize(self._target.display_url),
                "counts": {level.value: counts[level] for level in Level},
                "findings": [asdict(finding) for finding in self._findings],
            }
            self._print(json.dumps(document, indent=2, ensure_ascii=False))
        else:
            words = {Level.BAD: "bad", Level.WARN: "warnings", Level.OK: "ok", Level.SKIP: "not checked"}
            self._print(", ".join(f"{counts[level]} {word}" for level, word in words.items()))
        return 1 if counts[Level.BAD] else 0

    def _sanitize(self, text: str) -> str:
        clean = "".join(char if char.isprintable() else "\ufffd" for char in self._target.redact(text))
        return clean if len(clean) <= _MAX_TEXT_CHARS else f"{clean[:_MAX_TEXT_CHARS]}…"

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


EPILOG = """exit status:
  0    no finding is bad
  1    a finding is bad
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser. Its errors never repeat a value."""
    defaults = ProbeTimeouts()
    parser.add_argument("url", metavar="URL", type=_url, help="URL of a stream: https://host/events/channel")
    parser.add_argument(
        "--origin",
        metavar="ORIGIN",
        type=_origin,
        help="origin of the page that reads the stream, for CORS: https://app.example.com",
    )
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        dest="token",
        type=_token,
        help="environment variable that holds a bearer token",
    )
    parser.add_argument(
        "--seconds",
        metavar="N",
        type=_seconds,
        default=defaults.listen_seconds,
        help=f"how long to read the stream; default {defaults.listen_seconds:g}: longer than the common"
        f" proxy timeout of {COMMON_PROXY_TIMEOUT_SECONDS:g} s",
    )
    parser.add_argument(
        "--heartbeat",
        metavar="DURATION",
        type=parse_positive_duration,
        default=defaults.heartbeat_seconds,
        help=f"the gateway's timeouts.heartbeat; default {defaults.heartbeat_seconds:g}s",
    )
    parser.add_argument(
        "--ca", metavar="FILE", type=parse_ca_file, help="PEM file of additional certificates to trust"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")


def run(options: argparse.Namespace) -> int:
    """Examine, and return the exit status: 1 if a finding is bad, else 0. Ctrl-C prints the summary."""
    target: ProbeTarget = ProbeTarget.parse(options.url, origin=options.origin, token=options.token)
    timeouts = ProbeTimeouts(listen_seconds=options.seconds, heartbeat_seconds=options.heartbeat)
    context = client_tls_context(options.ca)
    report = DoctorReport(target, sys.stdout, is_json=options.json)
    report.start(timeouts.listen_seconds)
    try:
        asyncio.run(Probe(target, report.add, context, timeouts).run())
    except KeyboardInterrupt:
        report.finish()
        raise
    return report.finish()


def _url(text: str) -> str:
    # With a ValueError, argparse would print the argument, which may hold a ticket.
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
        raise argparse.ArgumentTypeError("must be one origin: https://app.example.com")
    return origin


def _token(name: str) -> str:
    token = os.environ.get(name, "").strip()
    if not token:
        raise argparse.ArgumentTypeError("the environment variable is not set, or empty: export it first")
    if not is_bearer_token(token):
        raise argparse.ArgumentTypeError("the variable's value is not a bearer token")
    return token


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("must be from 1 to 86400")
    return seconds
