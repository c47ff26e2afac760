"""The command's options, and its run."""

import argparse
import asyncio
import os
import ssl
import sys

from gateway.cli.doctor import network
from gateway.cli.doctor.probe import Walk
from gateway.cli.doctor.report import Report
from gateway.cli.doctor.target import Target
from gateway.cli.doctor.timeouts import COMMON_TIMEOUT, Patience
from gateway.config.model.origins import normalise
from gateway.config.model.units import parse_duration

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
