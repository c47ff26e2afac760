"""The ``sse-gateway`` command."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from gateway import __version__, runtime
from gateway.check import command as check
from gateway.check import difference
from gateway.config.load import load
from gateway.config.model import MAX_WORKERS, Config
from gateway.config.schema import json_schema
from gateway.config.sources import Webhook
from gateway.config.warnings import tell
from gateway.daemon import Daemon
from gateway.doctor import command as doctor
from gateway.errors import StartupError
from gateway.metrics import Metrics
from gateway.reload import ConfigFile
from gateway.terminal import publish, tail, token
from gateway.workers.parent import Parent

DEFAULT_CONFIG = "config/gateway.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 1 configuration or start failed, 2 usage."""
    options = parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except StartupError as error:
        print(error.message, file=sys.stderr)
        return 1
    except BrokenPipeError:  # sse-gateway schema | head
        sys.stderr.close()
        return 1
    return status


_RUN = """exit status:
  0  drained after SIGTERM or SIGINT
  1  it could not start, or a second signal ended it
  2  wrong usage"""
_CHECK = """exit status:
  0    the configuration is good; there may be warnings
  1    it has mistakes, or cannot be read; with --strict also warnings, with --connect what was not reached
  2    wrong usage
  130  interrupted (Ctrl-C)"""
_DIFF = """exit status:
  0  nothing differs, or a reload would do it
  1  one of the files has mistakes, or cannot be read
  2  wrong usage
  3  a change needs a restart: a reload would refuse the file"""
_SCHEMA = """exit status:
  0  printed"""
_DOCTOR = """exit status:
  0    nothing is bad
  1    something is
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def _epilog(text: str) -> dict[str, Any]:
    return {"epilog": text, "formatter_class": argparse.RawDescriptionHelpFormatter}


class _CommandParser(argparse.ArgumentParser):
    """Takes options between positional arguments too, which argparse does for no subcommand by itself."""

    _is_under_way = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._is_under_way:
            return super().parse_known_args(args, namespace)
        self._is_under_way = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_under_way = False


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `options.command` runs the one that was given."""
    parser = argparse.ArgumentParser(
        prog="sse-gateway", description="Events from Redis and webhooks to browsers, over Server-Sent Events."
    )
    parser.add_argument("--version", action="version", version=f"sse-gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_CommandParser)
    config = _CommandParser(add_help=False)
    config.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("SSE_GATEWAY_CONFIG") or DEFAULT_CONFIG,
        help=f"default: $SSE_GATEWAY_CONFIG, else {DEFAULT_CONFIG}",
    )
    run = commands.add_parser("run", parents=[config], help="serve until SIGTERM", **_epilog(_RUN))
    run.add_argument("--hints", action="store_true", help="print URLs and a curl line to try")
    run.set_defaults(command=_run)
    mistakes = commands.add_parser(
        "check",
        parents=[config],
        help="tell every mistake in the configuration; --config - reads stdin",
        **_epilog(_CHECK),
    )
    check.add_arguments(mistakes)
    mistakes.set_defaults(command=check.run)
    compare = commands.add_parser(
        "diff", help="say what a reload from one file to another would do", **_epilog(_DIFF)
    )
    difference.add_arguments(compare)
    compare.set_defaults(command=difference.run)
    schema = commands.add_parser(
        "schema", help="print the JSON Schema of the configuration", **_epilog(_SCHEMA)
    )
    schema.set_defaults(command=_schema)
    examine = commands.add_parser(
        "doctor", help="say what breaks streams at a deployed URL", **_epilog(_DOCTOR)
    )
    doctor.add_arguments(examine)
    examine.set_defaults(command=doctor.run)
    for name, command, help in (
        ("tail", tail, "follow channels in a terminal"),
        ("publish", publish, "send a test event the way that real ones take"),
        ("token", token, "sign a test JWT"),
    ):
        added = commands.add_parser(
            name, parents=[config], help=help, **_epilog(command.EPILOG)
        )  # fmt: skip
        command.add_arguments(added)
        added.set_defaults(command=partial(_at_terminal, command.run))
    return parser


def _run(options: argparse.Namespace) -> int:
    file = ConfigFile(options.config)
    config = file.load()
    metrics = Metrics()
    workers = _cores() if config.server.workers == "auto" else config.server.workers
    main = _serve_one if workers == 1 else partial(_serve_many, workers)
    return runtime.run(
        partial(main, file, config, metrics, options.hints), config.log, metrics.log_dropped.inc
    )


def _cores() -> int:
    """Return on how many cores this process may run."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


async def _serve_one(file: ConfigFile, config: Config, metrics: Metrics, hints: bool) -> int:
    tell(config)
    daemon = Daemon(config, metrics, file=file)
    if hints:
        daemon.on_listening = lambda: print(_hints(config, daemon.public.port, daemon.admin.port), flush=True)
    return await daemon.run()


async def _serve_many(workers: int, file: ConfigFile, config: Config, metrics: Metrics, hints: bool) -> int:
    tell(config)
    parent = Parent(config, workers, metrics, file)
    if hints:
        parent.on_listening = lambda: print(_hints(config, parent.port, parent.admin.port), flush=True)
    return await parent.run()


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def _at_terminal(
    run: Callable[[argparse.Namespace, Callable[[], Config]], int], options: argparse.Namespace
) -> int:
    """Run a command that may need the configuration, or may be told all on its command line."""
    return run(options, cache(partial(load, options.config)))


def _hints(config: Config, port: int, admin: int) -> str:
    """Return the URLs, and a line that shows an event arrive if the configuration has an open webhook."""
    base = config.server.public_url(port)
    lines = [
        "",
        f"  subscribe  {base}/events/<channel>    channels: {', '.join(config.channels)}",
        f"  console    {config.server.admin_url(admin)}/",
        f"  metrics    {config.server.admin_url(admin)}/metrics",
        f"  status     {config.server.admin_url(admin)}/status",
    ]
    for channel, spec in config.channels.items():
        for route in spec.from_:
            source = config.sources[route.source]
            if (
                isinstance(source, Webhook)
                and source.verify.none
                and spec.access == "public"
                and "{" not in route.topic
            ):
                topic = route.topic.replace("*", "created").replace("?", "x")
                post = f"curl -sd '{{\"hello\":\"world\"}}' '{base}/hooks/{route.source}?topic={topic}'"
                show = f"curl -sN --max-time 1 '{base}/events/{channel}?last=1'"
                return "\n".join([*lines, "", "  See an event arrive:", "", f"  {post}; {show}", ""])
    return "\n".join([*lines, ""])
