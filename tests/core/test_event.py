"""Ids and types."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.event import EventId, client_event_type


@given(st.integers(0, 10**15 - 1), st.integers(0, 10**10 - 1))
def test_an_id_survives_its_text_and_stays_short(ms: int, seq: int) -> None:
    """Clients send ids back as text; headers have room for 40 bytes of it."""
    id = EventId(ms, seq)
    assert EventId.parse(str(id)) == id
    assert len(str(id)) <= 40


@given(st.text())
def test_no_text_makes_parsing_fail(text: str) -> None:
    """A forged id is None, never an exception."""
    id = EventId.parse(text)
    assert id is None or re.fullmatch("[0-9]+-[0-9]+", text, re.ASCII)


def test_order_is_numeric() -> None:
    """9 comes before 10: ids are compared as numbers, not as text."""
    assert EventId(9, 10) < EventId(10, 0) < EventId(10, 9) < EventId(10, 10)


def test_before_lies_before_every_id_of_its_millisecond() -> None:
    """since= must include the first event of the millisecond."""
    assert EventId(99, 10**9) < EventId.last_before_ms(100) < EventId(100, 0)


@pytest.mark.parametrize("reserved", ["open", "error", "stream.gap", "stream.x", "stream."])
def test_reserved_types_become_message(reserved: str) -> None:
    """An upstream must not be able to forge the gateway's own events or EventSource's."""
    assert client_event_type(reserved) == "message"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "x" * 201, "\ud800"])
def test_types_that_would_inject_are_refused(bad: str) -> None:
    """CR or LF in a type would write fields of the upstream's choice."""
    with pytest.raises(ValueError, match="event type"):
        client_event_type(bad)


def test_ordinary_types_pass() -> None:
    """Dots, spaces and any script are fine; none is none."""
    assert client_event_type("order.created") == "order.created"
    assert client_event_type("Bestellung ü ") == "Bestellung ü "
    assert client_event_type("") is None
    assert client_event_type(None) is None
