"""``sse-gateway run``: serves until SIGTERM, in one process or with workers."""

import argparse
import os
from functools import partial

from gateway.cli.check.local_checks import find_local_issues
from gateway.config.model.config import MAX_WORKERS, Config
from gateway.config.model.sources import WebhookConfig
from gateway.config.model.value_types import UnixSocketPath
from gateway.config.validation.warnings import log_warnings
from gateway.core.sanitize import escape_unprintable_lines
from gateway.observability.metrics import Metrics
from gateway.observability.task_supervisor import TaskSupervisor
from gateway.server import runtime
from gateway.server.daemon import Daemon
from gateway.server.reload import ConfigFile
from gateway.server.workers.parent import Parent

EPILOG = """exit status:
  0  drained after SIGTERM or SIGINT
  1  it could not start, or was ended by a second signal
  2  wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the command's parser, which has ``--config`` already."""
    parser.add_argument("--hints", action="store_true", help="print URLs and a curl line to try")


def run(options: argparse.Namespace) -> int:
    """Serve, and return the exit status. Raises StartupError if it cannot start."""
    file = ConfigFile(options.config, find_local_issues)
    config = file.load()
    metrics = Metrics()
    declared = config.server.workers
    workers = min(MAX_WORKERS, len(os.sched_getaffinity(0))) if declared == "auto" else declared
    main = _serve_one if workers == 1 else partial(_serve_many, workers)
    return runtime.run_process(
        partial(main, file, config, metrics, options.hints),
        config.logging,
        metrics.log_lines_dropped.inc,
        background=TaskSupervisor(metrics.count_background_failure),
    )


async def _serve_one(file: ConfigFile, config: Config, metrics: Metrics, hints: bool) -> int:
    log_warnings(file.warnings)
    daemon = Daemon(config, metrics, file=file)
    if hints:
        daemon.on_listening = lambda: print(
            _format_hints(config, daemon.public_listener.port, daemon.admin_listener.port), flush=True
        )
    return await daemon.run()


async def _serve_many(workers: int, file: ConfigFile, config: Config, metrics: Metrics, hints: bool) -> int:
    log_warnings(file.warnings)
    parent = Parent(config, workers, metrics, file)
    if hints:
        parent.on_listening = lambda: print(
            _format_hints(config, parent.port, parent.admin_listener.port), flush=True
        )
    return await parent.run()


def _format_hints(config: Config, port: int, admin: int) -> str:
    """Return the URLs, and a command that shows an event if the configuration has an open webhook."""
    server, curl = config.server, "curl"
    base, console = server.public_url(port), server.admin_url(admin)
    if server.listen.first_tcp is None:
        curl, base = f"curl --unix-socket {str(server.listen[0])[5:]}", f"http://localhost{server.base_path}"
    if isinstance(server.admin, UnixSocketPath):
        console += ":"  # as nginx writes a path on such a socket
    lines = [
        "",
        f"  subscribe  {base}/events/<channel>    channels: {', '.join(config.channels)}",
        f"  console    {console}/",
        f"  metrics    {console}/metrics",
        f"  status     {console}/status",
    ]
    for channel, spec in config.channels.items():
        for route in spec.from_:
            source = config.sources[route.source]
            if (
                isinstance(source, WebhookConfig)
                and source.verify.none
                and spec.access == "public"
                and "{" not in route.topic
            ):
                topic = route.topic.replace("*", "created").replace("?", "x")
                post = f"{curl} -sd '{{\"hello\":\"world\"}}' '{base}/hooks/{route.source}?topic={topic}'"
                show = f"{curl} -sN --max-time 1 '{base}/events/{channel}?last=1'"
                return escape_unprintable_lines(
                    "\n".join([*lines, "", "  See an event arrive:", "", f"  {post}; {show}", ""])
                )
    return escape_unprintable_lines("\n".join([*lines, ""]))
