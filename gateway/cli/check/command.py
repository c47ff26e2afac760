"""The command's options, and its run."""

import argparse
import asyncio
import sys

from gateway.cli.check.explain import explain
from gateway.cli.check.local_checks import find_local_issues
from gateway.cli.check.report import FORMATS, CheckReport
from gateway.config.loader.load import LoadResult, load_file, load_text, read_config_text
from gateway.config.model.paths import config_folder
from gateway.core.errors import StartupError

_EXIT_INTERRUPTED = 130
"""The exit status that shells give to what SIGINT ended."""

_STDIN = "-"

EPILOG = """exit status:
  0    the configuration is good; there may be warnings
  1    it has mistakes, or cannot be read; with --strict also warnings, with --connect what was not reached
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser, which has ``--config`` already."""
    parser.add_argument(
        "--format",
        choices=sorted(FORMATS),
        default="text",
        help="text for people; json: one document; github: annotations of a pull request",
    )
    parser.add_argument("--strict", action="store_true", help="a warning is a mistake: exit 1")
    parser.add_argument("--explain", action="store_true", help="say in sentences what the file says")
    parser.add_argument(
        "--connect",
        action="store_true",
        help="try every server and file that it names, as the gateway would; a few harmless commands",
    )


def run(options: argparse.Namespace) -> int:
    """Check, and return the exit status: 0 good, 1 a mistake or something not reached, 130 interrupted."""
    report = CheckReport(FORMATS[options.format], is_strict=options.strict)
    try:
        reading = _read_config(options.config)
    except StartupError as error:
        return report.add_unreadable(options.config, error.message)
    report.add_result(reading)
    if reading.config is not None:
        if options.explain:
            report.add_explanation(explain(reading.config))
        if options.connect:
            from gateway.cli.check.connect import run_connection_checks  # noqa: PLC0415 -- clients of all upstreams take a while

            try:
                report.add_findings(asyncio.run(run_connection_checks(reading.config)))
            except KeyboardInterrupt:
                return _EXIT_INTERRUPTED
    return report.finish()


def _read_config(file: str) -> LoadResult:
    if file != _STDIN:
        return load_file(file, local_checker=find_local_issues)
    return load_text(
        read_config_text("<stdin>", sys.stdin.buffer),
        file="<stdin>",
        folder=config_folder(_STDIN),
        local_checker=find_local_issues,
    )
