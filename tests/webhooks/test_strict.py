"""Bodies that hold many records: counted before they are built, and cut out as they were written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import PayloadTooLarge, RecordRejected
from gateway.webhooks import strict_json as strict
from gateway.webhooks.strict_json import array_elements, has_more_elements, object_member
from tests.support.memory import traced

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(['"', "\\", "[,]", "{,}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
WHITE = st.sampled_from([b"", b" ", b"\r\n\t "])


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=5), VALUES, WHITE, st.booleans())
def test_a_member_is_cut_out_as_it_was_written(
    others: dict[str, Any], value: Any, white: bytes, is_spaced: bool
) -> None:
    """Records are slices of the body: whatever stands beside them, and however it is spaced."""
    body = json.dumps({**others, "records": value}, indent=2 if is_spaced else None).encode()
    assert json.loads(object_member(white + body + white, "records")) == value
    without = {name: each for name, each in others.items() if name != "records"}
    assert object_member(json.dumps(without).encode(), "records") == b""


@given(st.lists(VALUES, max_size=6), WHITE)
def test_elements_are_cut_out_and_counted(values: list[Any], white: bytes) -> None:
    """The bound is on records, neither on what is in them nor on what stands before the body."""
    body = white + json.dumps(values).encode()
    assert [json.loads(each) for each in array_elements(body)] == values
    for limit in range(1, 8):
        assert has_more_elements(body, limit) == (len(values) > limit)


@given(
    st.lists(
        st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=2), min_size=1, max_size=4), max_size=4
    )
)
def test_records_in_several_arrays_are_counted_together(arrays: list[list[Any]]) -> None:
    """AWS sends an array for each partition, and the bound is on all of them."""
    body = json.dumps({str(number): each for number, each in enumerate(arrays)}).encode()
    for limit in range(1, 8):
        assert has_more_elements(body, limit, depth=2) == (sum(map(len, arrays)) > limit)


@pytest.mark.parametrize(
    "body",
    [
        b'{"records":[1],"records":[1]}',
        b'{"records":[1],"\\u0072ecords":[1]}',
        b'{"a":1,"records":[1],"a":1}',
        b'{"records":[1],"a":{"b":1,"b":2}}',
        b'{"records":[1],"a":NaN}',
        b'{"records":[1],"a":1e999}',
        b'{"records":[1],}',
        b'{"records":[1],"a":"\xff"}',
        b'{"records":[1],"\xff":1}',
    ],
)
def test_what_readers_would_differ_on_is_refused_beside_the_records(body: bytes) -> None:
    """A body that is only partly looked into must not hide what a whole look would find."""
    with pytest.raises(RecordRejected):
        object_member(body, "records")


def test_bodies_that_hold_far_too_much_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these would become a hundred times its size, before it was refused."""
    monkeypatch.setattr(strict, "MAX_MEMBER_BYTES", 100_000)
    names = b",".join(b'"%d":1' % number for number in range(30_000))
    bodies = [
        b'{"records":[%b]}' % b",".join([b"[[],{}]"] * 30_000),
        b'{"records":[1],"more":[%b]}' % b",".join([b"[]"] * 100_000),
        b'{"records":[1],"more":[%b]}' % b",".join([b'""'] * 100_000),
        b'{"records":[1],%b}' % names,
    ]
    for body in bodies:
        with traced() as grown, pytest.raises(PayloadTooLarge):
            object_member(body, "records")
        assert grown.peak() < 3 * len(body)
    with pytest.raises(PayloadTooLarge):
        array_elements(object_member(b'{"records":[%b]}' % b",".join([b"1"] * 20_000), "records"))


def test_no_repetition_of_the_scan_holds_memory() -> None:
    """16 MiB of numbers took a gigabyte, for the way back of a pattern that never goes back."""
    for body in (
        b"[[%b]]" % b",".join([b"1"] * 200_000),
        b'["%b"]' % (b"\\n" * 200_000),
        b'["%b"]' % (b"x" * 400_000),
    ):
        with traced() as grown:
            assert len([*strict._structural_tokens(body)]) < 10
            assert grown.peak() < len(body) // 2


def test_the_bound_is_that_of_the_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number for all of them."""
    monkeypatch.setattr(strict, "MAX_RECORDS", 3)
    assert len(array_elements(b"[1,2,3]")) == 3
    with pytest.raises(PayloadTooLarge, match="3 records"):
        array_elements(b"[1,2,3,4]")
    with pytest.raises(PayloadTooLarge, match="3 records"):
        object_member(b'{"records":[[1],[2],[3],[{}]]}', "records")
