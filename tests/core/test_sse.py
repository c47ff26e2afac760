"""Framing: what goes in comes out of a parser that follows the specification, and nothing else does."""

import json
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.event import Event, EventId, client_event_type
from gateway.core.sse import (
    HEARTBEAT_COMMENT,
    StreamFormat,
    encode_control_frame,
    encode_envelope,
    encode_event_frame,
    encode_frame,
    encode_gap_frame,
    encode_http_chunk,
)
from gateway.sources.router import validate_json
from tests.support.eventsource import Parser

payloads = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
separators = "\u2028\u2029\x85"
blanks = st.text(alphabet=" \t\r\n", max_size=3)
tempting = st.text(alphabet=st.sampled_from(separators + '\\"/\u2027\xa0\u0085e'))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | payloads
    | tempting,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(payloads | tempting, inner, max_size=3),
    max_leaves=10,
)


@st.composite
def json_texts(draw: st.DrawFn) -> bytes:
    """A JSON text with any white space between its tokens, and any character that strings may hold."""

    def text(value: object) -> str:
        if isinstance(value, dict):
            pairs = [f"{text(key)}{draw(blanks)}:{text(inner)}" for key, inner in value.items()]
            return around("{" + draw(blanks) + ",".join(pairs) + "}")
        if isinstance(value, list):
            return around("[" + draw(blanks) + ",".join(map(text, value)) + "]")
        return around(json.dumps(value, ensure_ascii=draw(st.booleans())))

    def around(token: str) -> str:
        return draw(blanks) + token + draw(blanks)

    return text(draw(values)).encode()


nasty = st.text(alphabet=st.sampled_from("\r\n\0: \tdaeit:\u2028\u0085x"))


def parsed(stream: bytes, step: int = 1 << 20) -> Parser:
    parser = Parser()
    for at in range(0, len(stream), step):
        parser.feed(stream[at : at + step])
    return parser


def as_lf(text: str) -> str:
    """EventSource gives every line end back as LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


@given(payloads | nasty, st.integers(1, 7))
def test_any_payload_arrives_whole_whatever_the_segments(text: str, step: int) -> None:
    """Data cannot end its event, start a field or lose a blank, wherever TCP cuts it."""
    (message,) = parsed(encode_frame(text.encode(), event="t", id=EventId(5, 6)), step).messages
    assert message.data == as_lf(text)
    assert (message.type, message.id) == ("t", "5-6")


@given(st.lists(nasty, max_size=5))
def test_blocks_do_not_touch_each_other(texts: list[str]) -> None:
    """One write holds several events; they come out one by one."""
    stream = b"".join(encode_frame(text.encode()) for text in texts)
    assert [message.data for message in parsed(stream).messages] == [as_lf(text) for text in texts]


@given(nasty | payloads)
def test_a_type_is_refused_or_arrives_as_it_is(text: str) -> None:
    """No type gets a field onto the stream that the gateway did not write."""
    try:
        type_ = client_event_type(text)
    except ValueError:
        return
    (message,) = parsed(encode_frame(b"x", event=type_)).messages
    assert (message.type, message.data, message.id) == (type_ or "message", "x", "")


@pytest.mark.parametrize(
    ("stream", "data"),
    [
        (b"data:test\r\ndata\ndata:test\r\n\r", ["test\n\ntest"]),
        (b"data:\ttest\rdata: \ndata:test\n\n", ["\ttest\n\ntest"]),
        (b"data:\n\ndata\ndata\n\ndata:test", ["", "\n"]),
    ],
)
def test_the_parser_of_these_tests_passes_the_known_vectors(stream: bytes, data: list[str]) -> None:
    """A parser that is wrong would hide what the framing does wrong."""
    parser = parsed(stream + (b"\n" if stream.endswith(b"\r") else b""))
    assert [message.data for message in parser.messages] == data


def test_field_order_and_bytes() -> None:
    """The contract, to the byte: id last, one blank line, LF only."""
    event = Event(EventId(1763870000001, 0), "orders", b'{"a":1}', 1763870000001, "order.created")
    assert encode_event_frame(event, "envelope", "json") == (
        b"event: order.created\n"
        b'data: {"channel":"orders","id":"1763870000001-0","type":"order.created",'
        b'"timestamp":1763870000001,"payload":{"a":1}}\n'
        b"id: 1763870000001-0\n\n"
    )
    assert (
        encode_event_frame(event, "data", "json")
        == b'event: order.created\ndata: {"a":1}\nid: 1763870000001-0\n\n'
    )
    assert encode_control_frame("stream.close", {"reason": "x"}, retry_ms=10) == (
        b'retry: 10\nevent: stream.close\ndata: {"reason":"x"}\n\n'
    )
    assert encode_gap_frame("a", "expired", after=EventId(1, 2), oldest=None) == (
        b'event: stream.gap\ndata: {"channel":"a","reason":"expired","after":"1-2","oldest":null}\n\n'
    )


@pytest.mark.parametrize("number", ["12345678901234567890123", "1e400", "-0", "1.10"])
def test_json_payloads_are_embedded_byte_for_byte(number: str) -> None:
    """Re-encoding would round big integers and drop zeros."""
    event = Event(EventId(1, 0), "c", number.encode(), 1)
    assert encode_envelope(event, "json").endswith(b'"payload":' + number.encode() + b"}")


@given(json_texts(), tempting, st.sampled_from(["envelope", "message"]))
def test_an_envelope_is_one_line_for_every_reader(text: bytes, channel: str, format: StreamFormat) -> None:
    """A pretty-printed payload breaks clients that parse each line; U+2028 makes Python's readers lose half."""
    event = Event(EventId(1, 0), channel, validate_json(text), 1)
    written = encode_event_frame(event, format, "json")
    lines = written.decode().splitlines()
    assert len(lines) == 3, "the data, the id, and the blank line"
    assert lines[0].startswith("data: ")
    told = json.loads(lines[0][6:])
    assert told["channel"] == channel
    # Numbers are compared as they are written: -0 is 0 otherwise.
    exact = partial(json.loads, parse_int=str, parse_float=str)
    assert exact(lines[0][6:])["payload"] == exact(text)


@given(tempting)
def test_a_text_in_an_envelope_is_one_line(text: str) -> None:
    """Half of a text arrives where a reader takes U+2028 for the end of the line."""
    written = encode_event_frame(Event(EventId(1, 0), "c", text.encode(), 1), "envelope", "text").decode()
    data, _, _ = written.splitlines()
    assert json.loads(data[6:])["payload"] == text


def test_data_alone_keeps_its_characters() -> None:
    """A client that asked for the payload itself, to verify it, gets another text."""
    payload = '{\n "a": "\u2028\u2029\x85"\n}'
    written = encode_event_frame(Event(EventId(1, 0), "c", payload.encode(), 1), "data", "json")
    (message,) = parsed(written).messages
    assert message.data == payload


@pytest.mark.parametrize("mark", ["\r", "\n", "\0", *separators])
def test_a_type_with_a_line_end_is_refused(mark: str) -> None:
    """A type ends its line in some reader, and what follows is a field that nobody wrote."""
    with pytest.raises(ValueError, match="line end"):
        client_event_type(f"a{mark}id: 9-9")


@given(payloads)
def test_text_payloads_are_one_json_string(text: str) -> None:
    """A text channel's envelope is JSON whatever the text holds."""
    event = Event(EventId(1, 0), "c", text.encode(), 1, is_retained=False)
    decoded = msgspec.json.decode(encode_envelope(event, "text"))
    assert decoded["payload"] == text
    assert decoded["id"] is None


def test_the_heartbeat_fires_nothing() -> None:
    """A comment with a blank line after it fires an empty event in five client libraries."""
    assert HEARTBEAT_COMMENT == b":\n"
    parser = parsed(encode_frame(b"a") + HEARTBEAT_COMMENT + encode_frame(b"b"))
    assert [message.data for message in parser.messages] == ["a", "b"]
    assert parser.comments == 1


def test_chunks() -> None:
    """RFC 9112 §7.1."""
    assert encode_http_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
