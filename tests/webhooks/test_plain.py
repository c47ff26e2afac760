"""Bodies that no format claims: values, arrays, lines, and anything else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import BadRequest, PayloadTooLarge, RecordRejected
from gateway.core.event import Record
from gateway.webhooks import strict_json
from gateway.webhooks.detect import parse_post
from gateway.webhooks.formats.base import Post
from gateway.webhooks.strict_json import check_strict_json

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


def payloads(content_type: str, body: bytes) -> list[bytes]:
    records = parse_post(Post(body, content_type=content_type, topic="t")).records
    return [record.payload for record in records if isinstance(record, Record)]


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        (JSON, b'{"a": 1}', [b'{"a": 1}']),
        (JSON, b' [{"a" : 1}, 2,"x" ]\n', [b'{"a" : 1}', b"2", b'"x"']),
        (JSON, b"[[1,2],[3]]", [b"[1,2]", b"[3]"]),
        (JSON, b'{"a":1}\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
        (JSON, b"{broken", [b"{broken"]),
        (JSON, b"[1, NaN]", [b"[1, NaN]"]),
        (FORM, b'{"a":1}', [b'{"a":1}']),
        ("text/plain", b"hello\nworld", [b"hello\nworld"]),
        ("text/plain", b"1\n2\n\n3", [b"1", b"2", b"3"]),
        ("application/octet-stream", b"\xff\x00", [b"\xff\x00"]),
        ("application/x-ndjson", b'{"a":1}\n\n  \n{broken}\n', [b'{"a":1}', b"{broken}"]),
        (JSON, b'{\n  "pretty": 1\n}', [b'{\n  "pretty": 1\n}']),
        (JSON, b'[{"a":1}, {"a":2} , ] ', [b'{"a":1}', b'{"a":2}']),
        (JSON, b"[1,,]", [b"[1,,]"]),
    ],
)
def test_bodies(content_type: str, body: bytes, expected: list[bytes]) -> None:
    """JSON value, array, lines, or one record as it is; every payload is a slice of the body."""
    assert list(payloads(content_type, body)) == expected


@pytest.mark.parametrize("body", [b"", b" \r\n\t", b"[]"])
def test_a_body_without_a_record_is_a_400(body: bytes) -> None:
    """An empty post is a sender's mistake that a 200 would hide."""
    with pytest.raises(BadRequest) as caught:
        payloads(JSON, body)
    assert caught.value.code == "empty_body"


def test_the_number_of_records_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small body can hold very many records."""
    monkeypatch.setattr(strict_json, "MAX_RECORDS", 3)
    assert len(payloads(JSON, b"[1,2,3]")) == 3
    with pytest.raises(PayloadTooLarge):
        payloads(JSON, b"[1,2,3,4]")


@given(
    st.lists(
        st.recursive(
            st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=5
        ),
        min_size=1,
    )
)
def test_an_array_gives_its_elements(values: list[object]) -> None:
    """Whatever the elements are and however they are written."""
    for separators in ((",", ":"), (" , ", " : ")):
        body = json.dumps(values, separators=separators).encode()
        if b"\\ud" in body:
            continue  # a lone surrogate is no valid JSON text
        assert [json.loads(payload) for payload in payloads(JSON, body)] == values


@given(st.binary(min_size=1, max_size=80), st.sampled_from([JSON, FORM, "application/x-ndjson", ""]))
def test_no_body_escapes_as_another_error(body: bytes, content_type: str) -> None:
    """Any bytes are payloads or a 4xx; nothing is invented."""
    try:
        found = payloads(content_type, body)
    except (BadRequest, RecordRejected):
        return
    assert all(payload in body for payload in found)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}', b'[{"a":1},{"b":{"c":1,"c":2}}]', b'{"a":1}\n{"a":1,"a":2}', b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_readers_would_differ_on_is_refused(body: bytes) -> None:
    """Duplicate keys and numbers beyond a double mean one thing here and another in the browser."""
    with pytest.raises(RecordRejected) as caught:
        payloads(JSON, body)
    assert (caught.value.status, caught.value.code) == (422, "bad_json")


def test_deep_nesting_is_refused_or_text_and_never_an_error() -> None:
    """A stack overflow would be a 500, or the end of the process."""
    for depth in (500, 2000, 200_000):
        for body in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            try:
                payloads(JSON, body)
            except RecordRejected as error:
                assert error.code == "bad_json"


def test_a_key_that_is_given_twice_among_many_is_found_at_once() -> None:
    """Looking for each name among all would take hours for 16 MiB."""
    names = ",".join(f'"{number}":0' for number in range(300_000))
    with pytest.raises(RecordRejected, match="a key is given twice"):
        payloads(JSON, f'{{{names},"z":1,"z":2}}'.encode())


def test_an_array_that_is_cut_in_a_string_is_read_once() -> None:
    """Escaped quotes in a string without an end: looking for the end at each of them would take hours."""
    body = b'[["' + b'","'.join([b""] * 10_100) + b'",0],"' + b'\\"' * 500_000
    assert payloads("text/plain", body) == [body]


def test_a_record_that_is_too_large_is_not_looked_at() -> None:
    """What json builds of 16 MiB of small values is a gigabyte."""
    for body in (b'{"a":[' + b"0," * 1000 + b"0]}", b"[[" + b"0," * 1000 + b"0]]"):
        with pytest.raises(PayloadTooLarge):
            parse_post(Post(body, topic="t", max_record_bytes=1000))
    with pytest.raises(PayloadTooLarge, match="values"):
        check_strict_json(b"[" + b"0," * 5_000_000 + b"0]")
