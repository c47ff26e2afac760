"""``sse-gateway publish``: sends a test event as a real sender does."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway.cli.arguments import parse_count, parse_positive_duration
from gateway.cli.http_client import RequestFailed
from gateway.cli.terminal.endpoint import add_endpoint_options, resolve_endpoint
from gateway.cli.terminal.senders import send_record
from gateway.cli.terminal.test_record import PublishRequest, build_test_record
from gateway.config.loader.partial import ROUTING_KEYS, PartialConfig
from gateway.core.errors import NotFound, RecordRejected, StartupError
from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Bytes of a payload that are read."""

EPILOG = """If a webhook feeds the channel, the event is posted there, signed with the configuration's secret;
otherwise it is sent to the Redis or Kafka that feeds the channel. Webhooks return the ids of the events,
which are printed to standard output.

exit status:
  0    all were sent; by a webhook: they are in the log
  1    one could not be sent, was rejected, or had no subscriber; or an invalid configuration
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    parser.add_argument("channel", metavar="CHANNEL", help="orders, user.42")
    parser.add_argument(
        "payload",
        metavar="PAYLOAD",
        nargs="?",
        help="payload of the event; @FILE reads a file, - standard input; default: a test payload",
    )
    parser.add_argument("--type", metavar="TYPE", help="type of the event, if the source's records have one")
    parser.add_argument("--source", metavar="NAME", help="send through this source")
    parser.add_argument(
        "--topic", metavar="TOPIC", help="use this topic, if the route's pattern matches several"
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="message id or Idempotency-Key of a post (deduplicates retries), or Kafka record key",
    )
    parser.add_argument(
        "--count", metavar="N", type=parse_count, default=1, help="number of events; default 1"
    )
    parser.add_argument(
        "--interval",
        metavar="DURATION",
        type=parse_positive_duration,
        default=1.0,
        help="time between two events; default 1s",
    )
    add_endpoint_options(parser)


def run(options: argparse.Namespace, load_sections: Callable[..., PartialConfig]) -> int:
    """Send, and return the exit status. Raises StartupError if an event cannot be sent."""
    loaded = load_sections(*ROUTING_KEYS)
    request = PublishRequest(
        options.channel,
        _read_payload(options.payload),
        options.type,
        options.key,
        options.source,
        options.topic,
    )
    try:
        asyncio.run(_send_all(options, loaded, request, load_sections))
    except (NotFound, RecordRejected) as error:
        raise StartupError(escape_unprintable_lines(error.message)) from None
    except RequestFailed as error:
        fix = f"\n-> {error.fix}" if error.fix else ""
        raise StartupError(f"not sent: {error.message}{fix}") from None
    return 0


async def _send_all(
    options: argparse.Namespace,
    loaded: PartialConfig,
    request: PublishRequest,
    load_sections: Callable[..., PartialConfig],
) -> None:
    for number in range(1, options.count + 1):
        if number > 1:
            await asyncio.sleep(options.interval)
        record = build_test_record(loaded.config, replace(request, number=number), loaded.missing_by_source)
        sent = await send_record(record, lambda: resolve_endpoint(options, load_sections))
        others = [name for name in record.reached_channels if name != request.channel]
        also = f"; also reaches {', '.join(others)}" if others else ""
        print(f"{escape_unprintable(sent.summary)}{also}", file=sys.stderr, flush=True)
        for id in sent.event_ids:
            print(id, flush=True)


def _read_payload(text: str | None) -> bytes | None:
    if text is None:
        return None
    if text != "-" and not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    try:
        if text == "-":
            data = sys.stdin.buffer.read(MAX_PAYLOAD_BYTES + 1)
        else:
            with Path(text[1:]).open("rb") as file:
                data = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the payload {text}: {error.strerror}") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise StartupError(f"the payload is larger than {MAX_PAYLOAD_BYTES} bytes")
    return data
