"""The ``sse-gateway`` command."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial

from gateway import __version__, runtime
from gateway.config.load import load
from gateway.config.model import MAX_WORKERS, Config
from gateway.config.schema import json_schema
from gateway.config.sources import Webhook
from gateway.daemon import Daemon
from gateway.doctor import command as doctor
from gateway.errors import StartupError
from gateway.metrics import Metrics
from gateway.workers.parent import Parent

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
    commands = parser.add_subparsers(required=True, metavar="run|check|schema|doctor")
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
    examine = commands.add_parser("doctor", help="say what breaks streams at a deployed URL")
    doctor.add_arguments(examine)
    examine.set_defaults(command=doctor.run)
    return parser


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    metrics = Metrics()
    workers = _cores() if config.server.workers == "auto" else config.server.workers
    main = _serve_one if workers == 1 else partial(_serve_many, workers)
    return runtime.run(partial(main, config, metrics, options.hints), config.log, metrics.log_dropped.inc)


def _cores() -> int:
    """Return on how many cores this process may run."""
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)))


async def _serve_one(config: Config, metrics: Metrics, hints: bool) -> int:
    daemon = Daemon(config, metrics)
    if hints:
        daemon.on_listening = lambda: print(_hints(config, daemon.public.port, daemon.admin.port), flush=True)
    return await daemon.run()


async def _serve_many(workers: int, config: Config, metrics: Metrics, hints: bool) -> int:
    parent = Parent(config, workers, metrics)
    if hints:
        parent.on_listening = lambda: print(_hints(config, parent.port, parent.admin.port), flush=True)
    return await parent.run()


def _check(options: argparse.Namespace) -> int:
    config = load(options.config)
    print(f"{options.config}: good; {len(config.channels)} channels from {len(config.sources)} sources")
    return 0


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2))
    return 0


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
