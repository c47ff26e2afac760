"""``sse-gateway publish``: sends a test event the way that real ones take."""

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway.cli.terminal.endpoint import add_url, count, duration, open_door
from gateway.cli.terminal.senders import NotSent, send
from gateway.cli.terminal.test_record import Wish, parcel
from gateway.config.loader.parts import WAYS, Part
from gateway.core.errors import NotFound, Rejected, StartupError
from gateway.core.text import safe, safe_lines

MAX_PAYLOAD = 64 * 1024 * 1024
"""Bytes of a payload that are read."""

INTERRUPTED = 130

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
    parser.add_argument("--count", metavar="N", type=count, default=1, help="send so many; default 1")
    parser.add_argument(
        "--interval", metavar="DURATION", type=duration, default=1.0, help="between two; default 1s"
    )
    add_url(parser)


def run(options: argparse.Namespace, config: Callable[..., Part]) -> int:
    """Send, and return the exit status. Raises StartupError where it cannot begin."""
    loaded = config(*WAYS)
    wish = Wish(
        options.channel, _payload(options.payload), options.type, options.key, options.source, options.topic
    )
    try:
        asyncio.run(_send_all(options, loaded, wish, config))
    except KeyboardInterrupt:
        return INTERRUPTED
    except (NotFound, Rejected) as error:
        raise StartupError(safe_lines(error.message)) from None
    except NotSent as error:
        mend = f"\n-> {error.mend}" if error.mend else ""
        raise StartupError(f"not sent: {error.message}{mend}") from None
    return 0


async def _send_all(options: argparse.Namespace, part: Part, wish: Wish, config: Callable[..., Part]) -> None:
    for number in range(1, options.count + 1):
        if number > 1:
            await asyncio.sleep(options.interval)
        made = parcel(part.config, replace(wish, number=number), part.lacking)
        sent = await send(made, lambda: open_door(options, config))
        others = [name for name in made.reaches if name != wish.channel]
        also = f"; also reaches {', '.join(others)}" if others else ""
        print(f"{safe(sent.how)}{also}", file=sys.stderr, flush=True)
        for id in sent.ids:
            print(id, flush=True)


def _payload(text: str | None) -> bytes | None:
    if text is None:
        return None
    if text != "-" and not text.startswith("@"):
        return text.encode("utf-8", "surrogateescape")
    try:
        if text == "-":
            data = sys.stdin.buffer.read(MAX_PAYLOAD + 1)
        else:
            with Path(text[1:]).open("rb") as file:
                data = file.read(MAX_PAYLOAD + 1)
    except OSError as error:
        raise StartupError(f"cannot read the payload {text}: {error.strerror}") from None
    if len(data) > MAX_PAYLOAD:
        raise StartupError(f"the payload is larger than {MAX_PAYLOAD} bytes")
    return data
