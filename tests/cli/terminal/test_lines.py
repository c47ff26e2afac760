"""Text of senders must not control the terminal of a reader."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.terminal.lines import Painter, event_line, should_use_colour
from gateway.core.sanitize import escape_unprintable, escape_unprintable_lines
from gateway.core.sse_parser import SseMessage


@given(st.text())
def test_no_control_character_passes(text: str) -> None:
    """Escape sequences set titles, hide lines, and on some terminals run commands."""
    assert not [
        char for char in escape_unprintable(text) if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
    ]
    assert not [
        char
        for char in escape_unprintable_lines(text)
        if unicodedata.category(char) == "Cc" and char not in "\n\t"
    ]


@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False) | st.none()))
def test_json_stays_the_same_json(value: object) -> None:
    """What is escaped is escaped as JSON escapes it, so a script reads what was sent."""
    data = json.dumps({"channel": "c", "payload": value}, ensure_ascii=False, indent=1)
    try:
        data.encode()
    except UnicodeEncodeError:
        return  # half a character cannot be sent
    line = event_line(SseMessage("message", data, "1-0"), "json", Painter(False))
    assert "\n" not in line
    assert json.loads(line) == {"kind": "event", "channel": "c", "payload": value}


def test_numbers_are_what_was_sent() -> None:
    """Decoding would round what a double cannot hold."""
    data = '{"channel":"c","payload":12345678901234567890.00}'
    assert "12345678901234567890.00" in event_line(SseMessage("message", data, ""), "json", Painter(False))


@pytest.mark.parametrize("style", ["envelope", "data", "json"])
@pytest.mark.parametrize(
    "data", ["", "null", "[1]", "{", '{"channel":1,"payload":2,"timestamp":1e99}', "\x1b[2J"]
)
def test_what_is_no_envelope_is_shown_all_the_same(style: str, data: str) -> None:
    """A proxy's or another server's events must not end a tail with a traceback."""
    assert "\x1b" not in event_line(SseMessage("message", data, ""), style, Painter(False))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("when", "is_terminal", "environ", "coloured"),
    [
        ("auto", True, {"TERM": "xterm"}, True),
        ("auto", False, {"TERM": "xterm"}, False),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {}, False),
        ("auto", True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        ("auto", True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {"TERM": "xterm"}, False),
    ],
)
def test_when_there_are_colours(
    when: str, is_terminal: bool, environ: dict[str, str], coloured: bool
) -> None:
    """Colours in a file or a pipe are rubbish, and some people can see none."""
    assert should_use_colour(when, is_terminal=is_terminal, environ=environ) is coloured  # type: ignore[arg-type]
