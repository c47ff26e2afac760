"""``sse-gateway publish``: sends a test event the way that real ones take."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway.cli.terminal.endpoint import (
    add_endpoint_options,
    parse_count,
    parse_positive_duration,
    resolve_endpoint,
)
from gateway.cli.terminal.senders import SendError, send_record
from gateway.cli.terminal.test_record import PublishRequest, build_test_record
from gateway.config.loader.partial import ROUTING_KEYS, PartialConfig
from gateway.core.errors import NotFound, RecordRejected, StartupError
from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Bytes of a payload that are read."""

EXIT_INTERRUPTED = 130

EPILOG = """A webhook that feeds the channel is posted to, signed with the configuration's secret; else the
event goes to the Redis or Kafka that feeds it. Ids of events are on standard output, where the way
tells them.

exit status:
  0    all are sent; by a webhook: they are in the log
  1    one could not be sent, was refused, or nobody was there to hear it; or a bad configuration
  2    wrong usage
  130  interrupted (Ctrl-C)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    parser.add_argument("channel", metavar="CHANNEL", help="orders, user.42")
    parser.add_argument(
        "payload",
        metavar="PAYLOAD",
        nargs="?",
        help="the event's payload; @FILE reads a file, - standard input; default: a test payload",
    )
    parser.add_argument("--type", metavar="TYPE", help="the event's type, where the way can carry one")
    parser.add_argument("--source", metavar="NAME", help="send through this source")
    parser.add_argument("--topic", metavar="TOPIC", help="under this topic, where a route takes several")
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="a post's message id or Idempotency-Key: the same twice is one event; or a Kafka record's key",
    )
    parser.add_argument("--count", metavar="N", type=parse_count, default=1, help="send so many; default 1")
    parser.add_argument(
        "--interval",
        metavar="DURATION",
        type=parse_positive_duration,
        default=1.0,
        help="between two; default 1s",
    )
    add_endpoint_options(parser)


def run(options: argparse.Namespace, load_sections: Callable[..., PartialConfig]) -> int:
    """Send, and return the exit status. Raises StartupError where it cannot begin."""
    loaded = load_sections(*ROUTING_KEYS)
    wish = PublishRequest(
        options.channel,
        _read_payload(options.payload),
        options.type,
        options.key,
        options.source,
        options.topic,
    )
    try:
        asyncio.run(_send_all(options, loaded, wish, load_sections))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (NotFound, RecordRejected) as error:
        raise StartupError(escape_unprintable_lines(error.message)) from None
    except SendError as error:
        mend = f"\n-> {error.fix}" if error.fix else ""
        raise StartupError(f"not sent: {error.message}{mend}") from None
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
        made = build_test_record(loaded.config, replace(request, number=number), loaded.missing_by_source)
        sent = await send_record(made, lambda: resolve_endpoint(options, load_sections))
        others = [name for name in made.reached_channels if name != request.channel]
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
