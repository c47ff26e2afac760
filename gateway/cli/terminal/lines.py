"""Formats messages of a stream as the lines that ``tail`` prints. Pure."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines
from gateway.core.sse_parser import SseMessage

Colour = Literal["dim", "cyan", "green", "yellow", "red"]
ColourMode = Literal["auto", "always", "never"]

_ANSI_CODES: Mapping[Colour, str] = {"dim": "2", "cyan": "36", "green": "32", "yellow": "33", "red": "1;31"}


def should_use_colour(mode: ColourMode, *, is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """Return whether to use colours: https://no-color.org, and only on a terminal that supports them."""
    if mode != "auto":
        return mode == "always"
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM", "dumb") != "dumb"


class Painter:
    """Colours texts, if enabled."""

    def __init__(self, is_enabled: bool) -> None:
        self._is_enabled = is_enabled

    def __call__(self, colour: Colour, text: str) -> str:
        return f"\x1b[{_ANSI_CODES[colour]}m{text}\x1b[0m" if self._is_enabled and text else text


LineFormat = Literal["envelope", "data", "json"]

OPEN, GAP, CLOSE, HEARTBEAT = "stream.open", "stream.gap", "stream.close", "stream.heartbeat"
CONTROL_PREFIX = "stream."
"""Prefix of the types of control events."""

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def is_control_event(message: SseMessage) -> bool:
    """Return whether a message is a control event of the gateway."""
    return message.type.startswith(CONTROL_PREFIX)


def control_data(message: SseMessage) -> dict[str, Any]:
    """Return the data of a control event; empty if it is not a JSON object."""
    try:
        found = json.loads(message.data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def event_line(message: SseMessage, style: LineFormat, paint: Painter) -> str:
    """Return the line of an ordinary event, or the lines of its payload."""
    if style == "data":
        return escape_unprintable_lines(message.data)
    if style == "json":
        return _json_line(message)
    try:
        envelope = _object_decoder.decode(message.data)
        payload = bytes(envelope["payload"]).decode()
        channel, timestamp = (json.loads(bytes(envelope[name])) for name in ("channel", "timestamp"))
        time = datetime.fromtimestamp(timestamp / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError, OverflowError, OSError, RecursionError):
        return escape_unprintable(message.data)  # the server is not a gateway
    type_ = "" if message.type == "message" else paint("green", escape_unprintable(message.type)) + " "
    id = paint("dim", escape_unprintable(message.id) or "-")
    name = paint("cyan", escape_unprintable(str(channel)))
    return f"{paint('dim', time)} {id} {name} {type_}{_one_line(payload)}"


def control_event_line(message: SseMessage) -> str:
    """Return a control event as a JSON object."""
    return control_json(
        message.type.removeprefix(CONTROL_PREFIX), **control_data(message), id=message.id or None
    )


def control_json(kind: str, **values: Any) -> str:
    """Return a JSON object of some ``kind``, on one line."""
    return escape_unprintable(json.dumps({"kind": kind} | values))


def describe_gap(message: SseMessage) -> str:
    """Return a gap as a sentence."""
    gap = {
        name: escape_unprintable(str(value))
        for name, value in control_data(message).items()
        if value is not None
    }
    missing = f"{gap['missing']} events" if "missing" in gap else "events"
    between = f" after {gap['after']}" if "after" in gap else ""
    between += f" and before {gap['oldest']}" if "oldest" in gap else ""
    return f"GAP on {gap.get('channel', '?')}: {missing}{between} may be missing ({gap.get('reason', '?')})"


def _json_line(message: SseMessage) -> str:
    """Return the envelope with its kind. It is not re-encoded: each number stays as it was sent."""
    try:
        _object_decoder.decode(message.data)
    except (msgspec.MsgspecError, RecursionError):
        return control_json("event", id=message.id or None, type=message.type, payload=message.data)
    return '{"kind":"event",' + escape_unprintable(_one_line(message.data.strip())[1:].lstrip())


def _one_line(payload: str) -> str:
    """Return JSON on one line. Its line ends are white space: strings hold them escaped."""
    return escape_unprintable(payload.strip().replace("\r", " ").replace("\n", " ").replace("\t", " "))
