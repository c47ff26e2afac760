"""Text with places that a record fills in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.placeholders import Expression, resolve_json_pointer
from gateway.core.event import Record

PAYLOAD = (
    rb'{"order": {"id": 12345678901234567890, "tags": ["a", {"x/y": "z"}], "\u00e9~": true}, '
    rb'"": "empty", "n": null, "e": 1.50, "q": "a\"b"}'
)
RECORD = Record(
    "orders",
    PAYLOAD,
    placeholder_values={"key": "k1", "headers.type": "own"},
    shared_values={"headers.type": "all", "headers.id": "7"},
)


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("plain", "plain"), ("{key}", "k1"), ("a.{key}/{topic}", "a.k1/orders"), ("{headers.type}", "own"),
        ("{headers.id}", "7"), ("{headers.none}", None), ("x{offset}", None),
        ("{/order/id}", "12345678901234567890"), ("{/order/tags/0}", "a"), ("{/order/tags/1/x~1y}", "z"),
        ("{/order/é~0}", "true"), ("{/}", "empty"), ("{/e}", "1.50"), ("{/q}", 'a"b'),
        ("{/n}", None), ("{/order}", None), ("{/order/tags}", None), ("{/order/tags/9}", None), ("{/order/tags/-1}", None),
        ("{/order/id/deeper}", None), ("{/nothing}", None),
    ],
)  # fmt: skip
def test_places_are_filled_or_the_text_is_not_there(text: str, rendered: str | None) -> None:
    """A number is what was sent, digit by digit: a float would make two long ids one."""
    assert Expression(text).render(RECORD) == rendered


def test_own_is_what_a_record_does_not_share() -> None:
    """What all records of a request have in common does not tell them apart."""
    assert Expression("{key}").render(RECORD, exclude_shared=True) == "k1"
    assert Expression("{headers.id}").render(RECORD, exclude_shared=True) is None


@pytest.mark.parametrize("text", ["", "{", "a}", "{}", "{Key}", "{a b}", "{a.}", "{/a~2}", "{{key}}"])
def test_an_invalid_expression_is_rejected(text: str) -> None:
    """When the file is read, not when the first record comes."""
    with pytest.raises(ValueError, match=r"place|empty|neither"):
        Expression(text)


@given(st.binary(max_size=60), st.text(max_size=20))
def test_no_payload_and_no_pointer_raise(payload: bytes, pointer: str) -> None:
    """Anything can be posted."""
    resolve_json_pointer(payload, "/" + pointer)
    resolve_json_pointer(b'{"' + payload + b'":[1]}', "/" + pointer)
