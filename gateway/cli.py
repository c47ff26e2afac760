"""The ``sse-gateway`` command."""

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import Sequence

import uvloop

from gateway import __version__
from gateway.config.load import load
from gateway.config.model import Config
from gateway.config.schema import json_schema
from gateway.config.sources import Webhook
from gateway.daemon import Daemon
from gateway.errors import StartupError
from gateway.logs import configure
from gateway.metrics import Metrics

GC_THRESHOLD = 20_000
"""New objects until the garbage collector looks at them. Python's own 700 is a tenth of a herd's cost."""

DEFAULT_CONFIG = "config/gateway.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 well, 1 configuration or start failed, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except StartupError as error:
        print(error.message, file=sys.stderr)
        return 1
    except BrokenPipeError:  # sse-gateway schema | head
        sys.stderr.close()
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sse-gateway", description="Events from Redis and webhooks to browsers, over Server-Sent Events."
    )
    parser.add_argument("--version", action="version", version=f"sse-gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="run|check|schema")
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get("SSE_GATEWAY_CONFIG") or DEFAULT_CONFIG,
        help=f"default: $SSE_GATEWAY_CONFIG, else {DEFAULT_CONFIG}",
    )
    run = commands.add_parser("run", parents=[config], help="serve until SIGTERM")
    run.add_argument("--hints", action="store_true", help="print URLs and a curl line to try")
    run.set_defaults(command=_run)
    check = commands.add_parser("check", parents=[config], help="tell every mistake in the configuration")
    check.set_defaults(command=_check)
    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration")
    schema.set_defaults(command=_schema)
    return parser


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    metrics = Metrics()
    gc.collect()
    gc.freeze()  # what was imported stays, so it need not be looked at again
    gc.set_threshold(GC_THRESHOLD)
    writer = configure(
        level=config.log.level, format=config.log.format, dropped=metrics.log_dropped.inc, for_good=True
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, metrics, hints=options.hints))
    finally:
        writer.close()


async def _serve(config: Config, metrics: Metrics, *, hints: bool) -> int:
    daemon = Daemon(config, metrics)
    daemon.on_listening = (lambda: print(_hints(daemon), flush=True)) if hints else None
    return await daemon.run()


def _check(options: argparse.Namespace) -> int:
    config = load(options.config)
    print(f"{options.config}: good; {len(config.channels)} channels from {len(config.sources)} sources")
    return 0


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


def _hints(daemon: Daemon) -> str:
    """Return the URLs, and a line that shows an event arrive if the configuration has an open webhook."""
    base = f"{daemon.scheme}://127.0.0.1:{daemon.public.port}"
    admin = f"http://127.0.0.1:{daemon.admin.port}"
    lines = [
        "",
        f"  subscribe  {base}/events/<channel>    channels: {', '.join(daemon.config.channels)}",
        f"  metrics    {admin}/metrics",
        f"  status     {admin}/status",
    ]
    for channel, spec in daemon.config.channels.items():
        for route in spec.from_:
            source = daemon.config.sources[route.source]
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
