"""JSON objects cut out of a stream of bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import PayloadTooLarge, RecordRejected
from gateway.webhooks.formats.json_splitter import JsonSplitter

OBJECTS = st.lists(
    st.dictionaries(
        st.text(max_size=4) | st.just('"\\{}[]'),
        st.text(max_size=6) | st.just('}{"\\') | st.lists(st.integers(), max_size=3),
        max_size=3,
    ),
    max_size=6,
)


@given(OBJECTS, st.sampled_from([b"", b"\n", b" \r\n"]), st.integers(1, 7))
def test_objects_come_out_as_they_went_in(values: list[object], between: bytes, size: int) -> None:
    """Wherever the network cuts them, with braces and quotes inside."""
    stream = between.join(json.dumps(value).encode() for value in values) + between
    splitter = JsonSplitter(1000)
    found = [
        text for start in range(0, len(stream), size) for text in splitter.feed(stream[start : start + size])
    ]
    splitter.finish()
    assert [json.loads(text) for text in found] == values


def test_an_object_comes_out_with_its_last_byte() -> None:
    """A sender waits for the receipt of one before it sends the next."""
    splitter = JsonSplitter(1000)
    assert splitter.feed(b'{"a":"}') == []
    assert splitter.feed(b'"}') == [b'{"a":"}"}']


@pytest.mark.parametrize("stream", [b"[1]", b"1", b'"x"', b"}", b"x{}", b"{]"])
def test_what_is_no_row_of_objects_is_refused(stream: bytes) -> None:
    """At once, not at the end of a stream that has none."""
    splitter = JsonSplitter(1000)
    with pytest.raises(RecordRejected):
        splitter.feed(stream)


def test_what_came_whole_before_garbage_is_handed_out() -> None:
    """What is taken must not depend on where the network cuts."""
    splitter = JsonSplitter(1000)
    assert splitter.feed(b'{"a":1}{"b":2}nope') == [b'{"a":1}', b'{"b":2}']
    with pytest.raises(RecordRejected):
        splitter.finish()


def test_white_space_is_not_kept() -> None:
    """Else megabytes of it would be looked at again with every byte that comes."""
    splitter = JsonSplitter(1000)
    for _ in range(100):
        assert splitter.feed(b" \n" * 1000) == []
    assert splitter.buffered_bytes == 0
    assert splitter.feed(b' {"a":1} ') == [b'{"a":1}']


def test_an_object_is_bounded_and_must_end() -> None:
    """Memory is bounded, and an incomplete object is reported."""
    splitter = JsonSplitter(100)
    with pytest.raises(PayloadTooLarge):
        splitter.feed(b'{"a":"' + b"x" * 100)
    splitter = JsonSplitter(100)
    splitter.feed(b'{"a"')
    with pytest.raises(RecordRejected, match="incomplete"):
        splitter.finish()


@given(st.lists(st.binary(max_size=10), max_size=10))
def test_no_bytes_escape(parts: list[bytes]) -> None:
    """Garbage is a 4xx."""
    splitter = JsonSplitter(40)
    try:
        for part in parts:
            for text in splitter.feed(part):
                assert text[:1] == b"{"
        splitter.finish()
    except (RecordRejected, PayloadTooLarge):
        pass
