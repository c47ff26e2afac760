"""The ``sse-gateway`` program: parses the command line, and runs one command."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gateway import __version__
from gateway.core.errors import StartupError
from gateway.core.sanitize import escape_unprintable_lines

if TYPE_CHECKING:
    from gateway.config.loader.partial import PartialConfig

DEFAULT_CONFIG = "config/gateway.yaml"

EXIT_INTERRUPTED = 130
"""The exit status that shells use for SIGINT."""

COMMANDS = {
    "run": ("gateway.cli.run", "serve until SIGTERM"),
    "check": ("gateway.cli.check.command", "report all errors of the configuration; --config - reads stdin"),
    "diff": ("gateway.cli.diff", "show what a reload from one file to another would do"),
    "schema": ("gateway.cli.schema", "print the JSON Schema of the configuration"),
    "doctor": ("gateway.cli.doctor.command", "find what breaks streams at a deployed URL"),
    "tail": ("gateway.cli.tail", "follow channels in a terminal"),
    "publish": ("gateway.cli.publish", "send a test event as a real sender does"),
    "token": ("gateway.cli.token", "sign a test JWT"),
}
"""Module and help line of each command.

A module is imported when its command is used: importing all of them takes most of a second. It has
``add_arguments(parser)``, ``run(options)`` and ``EPILOG``. For a command of `LOADS_CONFIG`, ``run`` takes a
second argument: a function that loads the parts of the configuration that it names.
"""

HAS_CONFIG_OPTION = frozenset({"run", "check", "tail", "publish", "token"})
LOADS_CONFIG = frozenset({"tail", "publish", "token"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 failure, 2 usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with _exit_on_signals() if list(given[:1]) == ["run"] else nullcontext():
            options = build_parser().parse_args(given)
            status: int = options.command(options)
    except StartupError as error:
        print(escape_unprintable_lines(error.message), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # sse-gateway schema | head
        sys.stderr.close()
        return 1
    return status


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT end `run` with status 0 while it loads its modules and its file.

    Later it has handlers of its own. Without these, process 1 of a container would not end at all: the kernel
    drops signals for which such a process has no handler.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class CommandParser(argparse.ArgumentParser):
    """The parser of one command, to which options are added on first use.

    It accepts options between positional arguments, which argparse does not for subcommands.
    """

    command: str | None = None
    _is_parsing = False

    def load_options(self) -> None:
        """Import the command's module and add its options. May be called again."""
        if self.command is None:
            return
        module = import_module(COMMANDS[self.command][0])
        if self.command in HAS_CONFIG_OPTION:
            self.add_argument(
                "--config",
                metavar="FILE",
                default=os.environ.get("SSE_GATEWAY_CONFIG") or DEFAULT_CONFIG,
                help=f"default: $SSE_GATEWAY_CONFIG, else {DEFAULT_CONFIG}",
            )
        module.add_arguments(self)
        self.epilog, self.formatter_class = module.EPILOG, argparse.RawDescriptionHelpFormatter
        run = partial(_run_with_config, module.run) if self.command in LOADS_CONFIG else module.run
        self.set_defaults(command=run)
        self.command = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_parsing:
            return super().parse_known_args(args, namespace)
        self.load_options()
        self._is_parsing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_parsing = False


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `options.command` runs the given one."""
    parser = argparse.ArgumentParser(
        prog="sse-gateway", description="Events from Redis and webhooks to browsers, over Server-Sent Events."
    )
    parser.add_argument("--version", action="version", version=f"sse-gateway {__version__}")
    added = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=CommandParser)
    for name, (_, help) in COMMANDS.items():
        added.add_parser(name, help=help).command = name
    return parser


def command_parsers() -> dict[str, CommandParser]:
    """Return the parser of each command, with its options."""
    (named,) = (
        action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    parsers: dict[str, CommandParser] = dict(named.choices)
    for each in parsers.values():
        each.load_options()
    return parsers


def _run_with_config(
    command: Callable[[argparse.Namespace, "Callable[..., PartialConfig]"], int], options: argparse.Namespace
) -> int:
    """Run a command that loads the parts of the configuration that its options do not replace."""
    from gateway.config.loader.partial import load_sections  # noqa: PLC0415 -- a command's import

    return command(options, cache(partial(load_sections, options.config)))
