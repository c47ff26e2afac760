"""The options and the run of ``sse-gateway check``."""

import argparse
import asyncio
import sys

from gateway.cli.check.explain import explain
from gateway.cli.check.local_checks import find_local_issues
from gateway.cli.check.report import FORMATS
from gateway.cli.finding import Level
from gateway.config.loader.load import LoadResult, load_file, load_text, read_config_text
from gateway.config.model.paths import config_folder
from gateway.core.errors import StartupError

_STDIN = "-"

EPILOG = """exit status:
  0    the configuration is valid; there may be warnings
  1    it has errors or cannot be read; with --strict: a warning; with --connect: a server is unreachable
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
    parser.add_argument("--strict", action="store_true", help="treat warnings as errors: exit 1")
    parser.add_argument("--explain", action="store_true", help="describe the configuration in sentences")
    parser.add_argument(
        "--connect",
        action="store_true",
        help="try every server and file of the configuration, as the gateway would; changes nothing",
    )


def run(options: argparse.Namespace) -> int:
    """Check, and return the exit status: 0 valid, 1 invalid or unreachable."""
    report = FORMATS[options.format]()
    try:
        result = _read_config(options.config)
    except StartupError as error:
        report.write_unreadable(options.config, error.message)
        report.finish(is_good=False)
        return 1
    is_good = result.config is not None and not (options.strict and result.warnings)
    report.write_result(result, options.strict)
    if result.config is not None and options.explain:
        report.write_explanation(explain(result.config))
    if result.config is not None and options.connect:
        from gateway.cli.check.connect import run_connection_checks  # noqa: PLC0415 -- loads all clients

        findings = asyncio.run(run_connection_checks(result.config))
        levels = {finding.level for finding in findings}
        is_good &= Level.BAD not in levels and not (options.strict and Level.WARN in levels)
        report.write_findings(findings)
    report.finish(is_good)
    return 0 if is_good else 1


def _read_config(file: str) -> LoadResult:
    if file != _STDIN:
        return load_file(file, local_checker=find_local_issues)
    return load_text(
        read_config_text("<stdin>", sys.stdin.buffer),
        file="<stdin>",
        folder=config_folder(_STDIN),
        local_checker=find_local_issues,
    )
