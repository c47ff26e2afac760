"""The parser of ``tail`` beside another one that was written to the same clauses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import sse_parser as module
from gateway.core.sse_parser import MessageTooLong, SseParser
from tests.support.eventsource import Parser as Other

LINES = st.sampled_from(
    [b"data: a", b"data:b", b"data", b"event: x", b"event", b"id: 1-0", b"id", b"id: a\0b", b":", b": c",
     b"retry: 5", b"retry: x", b"unknown: 1", b"", b"", b"data: \xff\xe2\x80\xa8", b" data: no"]
)  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=30), st.lists(st.integers(1, 7), min_size=1))
def test_it_hears_what_a_browser_hears(lines: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    """However the pieces fall: messages, last id and delay are those of WHATWG's algorithm."""
    body = b"".join(line + end for line, end in lines).replace(b"\xff", b"f") + b"data: torn"
    ours, other = SseParser(), Other()
    heard = []
    at = 0
    while at < len(body):
        size = sizes[at % len(sizes)]
        heard += ours.feed(body[at : at + size])
        at += size
    other.feed(body)
    assert [(each.type, each.data, each.id) for each in heard] == [
        (each.type, each.data, each.id) for each in other.messages
    ]
    assert (ours.last_id, ours.retry_ms) == (other.last_id, other.retry)


def test_the_id_of_a_torn_message_never_counts() -> None:
    """It would be skipped by the resume, and lost."""
    parser = SseParser("1-0")
    assert parser.feed(b"id: 2-0\ndata: x\n") == []
    assert parser.last_id == "1-0"


def test_a_message_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is no gateway may send anything."""
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(MessageTooLong):
        SseParser().feed(b"x" * 1001)
    parser = SseParser()
    with pytest.raises(MessageTooLong):
        for _ in range(101):
            parser.feed(b"data: 123456\n")
