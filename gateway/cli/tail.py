"""``sse-gateway tail``: follows channels in a terminal."""

import argparse
import asyncio
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gateway.cli.arguments import parse_count, parse_positive_duration
from gateway.cli.http_client import RequestFailed
from gateway.cli.terminal.endpoint import (
    Endpoint,
    add_endpoint_options,
    add_token_options,
    read_token,
    resolve_endpoint,
)
from gateway.cli.terminal.follower import Disconnect, StreamFollower
from gateway.cli.terminal.lines import (
    CLOSE,
    GAP,
    HEARTBEAT,
    OPEN,
    Colour,
    LineFormat,
    Painter,
    control_data,
    control_event_line,
    control_json,
    describe_gap,
    event_line,
    is_control_event,
    should_use_colour,
)
from gateway.config.loader.partial import HEARTBEAT_KEYS, PartialConfig
from gateway.core.errors import StartupError
from gateway.core.sanitize import escape_unprintable
from gateway.core.sse_parser import SseMessage

DEFAULT_IDLE_SECONDS = 60.0
"""Seconds without a byte after which a stream counts as dead, if the heartbeat is unknown."""

IDLE_HEARTBEATS = 2.5
"""Heartbeat intervals without a byte after which it does, if the heartbeat is known."""

MIN_IDLE_SECONDS = 5.0
"""Least seconds, whatever the heartbeat: a slow network is not a dead one."""

EXIT_REFUSED, EXIT_TIMED_OUT, EXIT_BROKEN_PIPE = 1, 3, 141

EPILOG = """exit status:
  0    --count events arrived, or --timeout ended a tail without --count, or the gateway forbade reconnecting
  1    refused: a status 4xx, not an event stream, an untrusted certificate; or an invalid configuration
  2    wrong usage
  3    --timeout passed before --count events arrived
  130  interrupted (Ctrl-C)
  141  the reader of the output is gone (| head)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command's parser."""
    parser.add_argument("channels", metavar="CHANNEL", nargs="+", type=_channel_name, help="orders, user.42")
    add_endpoint_options(parser)
    add_token_options(parser)
    parser.add_argument("--types", metavar="A,B", help="only events of these types")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--last", metavar="N", help="start with the last N events")
    start.add_argument(
        "--since", metavar="WHEN", help="start at an event id, an ISO time, or a duration ago: 15m"
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
        help="a JSON object per line; its kind is event, open, gap, close or away",
    )
    parser.add_argument("--count", metavar="N", type=parse_count, help="end after N events")
    parser.add_argument(
        "--timeout", metavar="DURATION", type=parse_positive_duration, help="end after a duration: 30s"
    )
    parser.add_argument(
        "--idle",
        metavar="DURATION",
        type=parse_positive_duration,
        help="reconnect after a duration without a byte; default"
        f" {DEFAULT_IDLE_SECONDS:g}s with --url, else {IDLE_HEARTBEATS:g} heartbeats of the configuration",
    )
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto",
        help="auto: on a terminal, unless NO_COLOR is set; default auto",
    )  # fmt: skip


def run(options: argparse.Namespace, load_sections: Callable[..., PartialConfig]) -> int:
    """Follow, and return the exit status. Raises StartupError for a bad configuration or output."""
    endpoint = resolve_endpoint(options, load_sections, token=read_token(options))
    idle_seconds = options.idle or DEFAULT_IDLE_SECONDS
    if not options.idle and not options.url:
        heartbeat = load_sections(HEARTBEAT_KEYS).config.timeouts.heartbeat
        idle_seconds = max(IDLE_HEARTBEATS * heartbeat, MIN_IDLE_SECONDS)
    printer = _Printer(options)
    try:
        return asyncio.run(_follow(options, endpoint, idle_seconds, printer))
    except _OutputClosed as error:
        # At its end the interpreter flushes standard output, and would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.is_pipe:
            return EXIT_BROKEN_PIPE
        raise StartupError(f"cannot write: {error}") from None
    except RequestFailed as error:
        printer.print_refusal(error)
        return EXIT_REFUSED


class _CountReached(Exception):
    """The number of events in --count was printed."""


class _OutputClosed(Exception):
    """Standard output is closed. An OSError would look like one of the connection."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.is_pipe = isinstance(error, BrokenPipeError)


class _Printer:
    """Prints events to standard output, and notes to standard error; with --json notes go to both."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._style: LineFormat = "json" if options.json else options.format
        self._remaining_count: int | None = options.count
        self._paint, self._paint_error = (
            Painter(should_use_colour(options.color, is_terminal=file.isatty(), environ=os.environ))
            for file in (sys.stdout, sys.stderr)
        )

    def print_message(self, message: SseMessage) -> None:
        """Print a message. Raises _CountReached after the last one of --count, or _OutputClosed."""
        if is_control_event(message):
            self._print_control_event(message)
            return
        self._print_line(event_line(message, self._style, self._paint))
        if self._remaining_count is not None:
            self._remaining_count -= 1
            if not self._remaining_count:
                raise _CountReached

    def print_disconnect(self, disconnect: Disconnect) -> None:
        """Print an interruption. Raises _OutputClosed."""
        if self._style == "json":
            self._print_line(
                control_json("away", why=disconnect.reason, retry_in=round(disconnect.retry_seconds, 1))
            )
        self._print_note("yellow", f"{disconnect.reason}; again in {disconnect.retry_seconds:.1f} s")

    def print_refusal(self, error: RequestFailed) -> None:
        """Print why the stream cannot be opened."""
        self._print_note("red", error.message)
        if error.fix:
            self._print_note("yellow", f"-> {error.fix}")

    def _print_control_event(self, message: SseMessage) -> None:
        if self._style == "json" and message.type != HEARTBEAT:
            self._print_line(control_event_line(message))
        if message.type == GAP:
            self._print_note("red", describe_gap(message))
        elif message.type == OPEN:
            notes = {"complete": "reconnected, no event missed", "gap": "reconnected, events were missed"}
            self._print_note("dim", notes.get(str(control_data(message).get("resume")), "open"))
        elif message.type == CLOSE and control_data(message).get("reconnect") is False:
            reason = escape_unprintable(str(control_data(message).get("reason")))
            self._print_note("red", f"closed for good: {reason}")

    def _print_line(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError as error:
            raise _OutputClosed(error) from None

    def _print_note(self, colour: Colour, text: str) -> None:
        with suppress(OSError):
            print(self._paint_error(colour, f"-- {text}"), file=sys.stderr, flush=True)


async def _follow(
    options: argparse.Namespace, endpoint: Endpoint, idle_seconds: float, printer: _Printer
) -> int:
    follower = StreamFollower(
        endpoint,
        _query(options),
        idle_seconds=idle_seconds,
        on_message=printer.print_message,
        on_disconnect=printer.print_disconnect,
    )
    own = asyncio.current_task()
    assert own is not None
    following = asyncio.create_task(follower.run(), name="follow")
    try:
        async with asyncio.timeout(options.timeout):
            with _cancel_when_reader_closes(following):
                await following
    except TimeoutError:
        return EXIT_TIMED_OUT if options.count else 0
    except _CountReached:
        return 0
    except asyncio.CancelledError:
        if not own.cancelling():
            raise _OutputClosed(BrokenPipeError()) from None
        raise
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return 0


def _query(options: argparse.Namespace) -> list[tuple[str, str]]:
    query = [("channel", name) for name in options.channels]
    query.append(("format", "envelope" if options.json else options.format))
    given = ((name, getattr(options, name)) for name in ("types", "last", "since"))
    return query + [(name, value) for name, value in given if value is not None]


@contextmanager
def _cancel_when_reader_closes(following: "asyncio.Task[None]") -> Iterator[None]:
    """Cancel a task when the reader of a pipe closes it: the next write may be hours away."""
    loop, file = asyncio.get_running_loop(), sys.stdout.fileno()
    if not stat.S_ISFIFO(os.fstat(file).st_mode):
        yield
        return
    loop.add_reader(file, following.cancel)  # a writing end is never readable, except for errors
    try:
        yield
    finally:
        loop.remove_reader(file)


def _channel_name(text: str) -> str:
    if "://" in text:
        raise argparse.ArgumentTypeError("must be a channel name; the gateway's URL goes into --url")
    return text
