"""``sse-gateway tail``: follows channels in a terminal."""

import argparse
import asyncio
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gateway.cli.terminal.endpoint import Door, add_token, add_url, count, duration, open_door, token_of
from gateway.cli.terminal.follower import Away, Follower, Refused
from gateway.cli.terminal.lines import (
    CLOSE,
    GAP,
    HEARTBEAT,
    OPEN,
    Colour,
    Paint,
    Style,
    control_line,
    event_line,
    gap_words,
    is_coloured,
    is_own,
    own_line,
    told,
)
from gateway.config.loader.parts import HEARTBEATS, Part
from gateway.config.model.config import Config
from gateway.core.errors import StartupError
from gateway.core.sse_parser import Message
from gateway.core.text import safe

IDLE = 60.0
"""Seconds without a byte after which a stream counts as dead, where the heartbeat is not known."""

BEATS = 2.5
"""After how many missing heartbeats it does, where it is."""

SHORTEST_IDLE = 5.0
"""Seconds below which that is not taken: a slow network is no dead one."""

REFUSED, TIMED_OUT, INTERRUPTED, BROKEN_PIPE = 1, 3, 130, 141

EPILOG = """exit status:
  0    --count events came, or --timeout ended a tail without --count, or the gateway said not to come back
  1    refused: a status 4xx, no event stream, a certificate that is not trusted; or a bad configuration
  2    wrong usage
  3    --timeout passed before --count events came
  130  interrupted (Ctrl-C)
  141  whoever reads the output is gone (| head)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    parser.add_argument("channels", metavar="CHANNEL", nargs="+", type=_channel, help="orders, user.42")
    add_url(parser)
    add_token(parser)
    parser.add_argument("--types", metavar="A,B", help="only events of these types")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--last", metavar="N", help="begin with the last N events")
    begin.add_argument(
        "--since", metavar="WHEN", help="begin at an event id, an ISO time, or a duration ago: 15m"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--format",
        choices=("envelope", "data"),
        default="envelope",
        help="envelope: time, id, channel, type, payload on a line; data: the payload; default envelope",
    )
    shape.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on a line for each event; kind says event, open, gap, close or away",
    )
    parser.add_argument("--count", metavar="N", type=count, help="end after so many events")
    parser.add_argument("--timeout", metavar="DURATION", type=duration, help="end after so long: 30s")
    parser.add_argument(
        "--idle",
        metavar="DURATION",
        type=duration,
        help=f"no byte for so long and the stream is opened anew; default {IDLE:g}s with --url, else"
        f" {BEATS:g} heartbeats of the configuration",
    )
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="auto: on a terminal, unless NO_COLOR is set; default auto",
    )  # fmt: skip


def run(options: argparse.Namespace, config: Callable[..., Part]) -> int:
    """Follow, and return the exit status. Raises StartupError where it cannot begin."""
    door = open_door(options, config, token=token_of(options))
    idle = options.idle or (IDLE if options.url else _silence(config(HEARTBEATS).config))
    view = _View(options)
    try:
        return asyncio.run(_follow(options, door, idle, view))
    except KeyboardInterrupt:
        return INTERRUPTED
    except _NoOutput as error:
        # The interpreter would flush what is left at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.is_pipe:
            return BROKEN_PIPE
        raise StartupError(f"cannot write: {error}") from None
    except Refused as error:
        view.refused(error)
        return REFUSED


def _silence(config: Config) -> float:
    return max(BEATS * config.timeouts.heartbeat, SHORTEST_IDLE)


class _Enough(Exception):
    """As many events as were asked for."""


class _NoOutput(Exception):
    """Standard output takes nothing more. An OSError would pass for one of the connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.is_pipe = isinstance(error, BrokenPipeError)


class _View:
    """Prints: events to standard output, all else to standard error; with --json that to both."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._style: Style = "json" if options.json else options.format
        self._left: int | None = options.count
        self._paint, self._alarm = (
            Paint(is_coloured(options.color, is_terminal=file.isatty(), environ=os.environ))
            for file in (sys.stdout, sys.stderr)
        )

    def message(self, message: Message) -> None:
        """Show one message. Raises _Enough after the last one that was asked for, _NoOutput."""
        if is_own(message):
            self._own(message)
            return
        self._print(event_line(message, self._style, self._paint))
        if self._left is not None:
            self._left -= 1
            if not self._left:
                raise _Enough

    def away(self, away: Away) -> None:
        """Say that there is no stream just now. Raises _NoOutput."""
        if self._style == "json":
            self._print(control_line("away", why=away.why, retry_in=round(away.seconds, 1)))
        self._say("yellow", f"{away.why}; again in {away.seconds:.1f} s")

    def refused(self, error: Refused) -> None:
        """Say why there will be none."""
        self._say("red", error.message)
        if error.mend:
            self._say("yellow", f"-> {error.mend}")

    def _own(self, message: Message) -> None:
        if self._style == "json" and message.type != HEARTBEAT:
            self._print(own_line(message))
        if message.type == GAP:
            self._say("red", gap_words(message))
        elif message.type == OPEN:
            said = {"complete": "open again, nothing was missed", "gap": "open again, something was missed"}
            self._say("dim", said.get(str(told(message).get("resume")), "open"))
        elif message.type == CLOSE and told(message).get("reconnect") is False:
            self._say("red", f"closed for good: {safe(str(told(message).get('reason')))}")

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError as error:
            raise _NoOutput(error) from None

    def _say(self, colour: Colour, text: str) -> None:
        with suppress(OSError):
            print(self._alarm(colour, f"-- {text}"), file=sys.stderr, flush=True)


async def _follow(options: argparse.Namespace, door: Door, idle: float, view: _View) -> int:
    follower = Follower(door, _query(options), idle=idle, on_message=view.message, on_away=view.away)
    own = asyncio.current_task()
    assert own is not None
    following = asyncio.create_task(follower.run(), name="follow")
    try:
        async with asyncio.timeout(options.timeout):
            with _reader_watched(following):
                await following
    except TimeoutError:
        return TIMED_OUT if options.count else 0
    except _Enough:
        return 0
    except asyncio.CancelledError:
        if not own.cancelling():
            raise _NoOutput(BrokenPipeError()) from None
        raise
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return 0


def _query(options: argparse.Namespace) -> list[tuple[str, str]]:
    query = [("channel", name) for name in options.channels]
    query.append(("format", "envelope" if options.json else options.format))
    asked = ((name, getattr(options, name)) for name in ("types", "last", "since"))
    return query + [(name, value) for name, value in asked if value is not None]


@contextmanager
def _reader_watched(following: "asyncio.Task[None]") -> Iterator[None]:
    """Cancel a task when the reader of a pipe goes: the next event, which would tell, may be hours away."""
    loop, file = asyncio.get_running_loop(), sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(file).st_mode):
        yield
        return
    loop.add_reader(file, following.cancel)  # the writing end is never readable: what wakes it is the error
    try:
        yield
    finally:
        loop.remove_reader(file)


def _channel(text: str) -> str:
    if "://" in text:
        raise argparse.ArgumentTypeError("name a channel here, and the gateway by --url")
    return text
