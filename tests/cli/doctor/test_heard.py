"""Bytes of a stream to what a diagnosis needs."""

import pytest

from gateway.cli.doctor.transcript import LONGEST_LINE, Ear, End
from gateway.core.event import EventId
from gateway.core.sse import HEARTBEAT, control_block, open_block

OPEN = open_block("abc", ["orders"], "complete", id=EventId(1, 2), retry=3000, heartbeat=15_000)
CLOSE = control_block("stream.close", {"reason": "max_age", "reconnect": True}, retry=9)


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_pieces_of_any_size(size: int, end: bytes) -> None:
    """Proxies cut where they like, and some rewrite line ends."""
    text = (OPEN + HEARTBEAT + b"event: x\ndata: {}\n\n" + HEARTBEAT + CLOSE).replace(b"\n", end)
    ear = Ear(0.0)
    for at in range(0, len(text), size):
        ear.feed(text[at : at + size], float(at))
    ear.feed(b":", 0.0)
    heard = ear.heard(1.0, End.TIME)
    assert heard.opened is not None
    assert (heard.opened.resume, heard.last_id, heard.close_reason) == ("complete", "1-2", "max_age")
    assert sum(arrival.beats for arrival in heard.arrivals) == 2
    assert sum(arrival.size for arrival in heard.arrivals) == len(text) + 1


def test_heartbeats_as_events() -> None:
    """heartbeat=event in the URL."""
    ear = Ear(0.0)
    ear.feed(control_block("stream.heartbeat", {}), 1.0)
    assert ear.heard(2.0, End.TIME).arrivals[0].beats == 1


def test_a_heartbeat_that_asks_is_none_of_those() -> None:
    """It comes when it is due: right behind another one it would look like bytes that a proxy held back."""
    ear = Ear(0.0)
    ear.feed(HEARTBEAT + control_block("stream.heartbeat", {"nonce": "a-1-b"}), 1.0)
    assert ear.heard(2.0, End.TIME).arrivals[0].beats == 1


@pytest.mark.parametrize("data", [b"", b"no json", b"[]", b"{}"])
def test_foreign_words(data: bytes) -> None:
    """Another server's stream.open is no reason to fall over."""
    ear = Ear(0.0)
    ear.feed(b"event: stream.open\ndata: " + data + b"\n\n", 1.0)
    assert ear.opened is not None
    assert ear.opened.resume == ""


def test_an_endless_line_is_not_kept() -> None:
    """A server that never ends its line must not fill the memory."""
    ear = Ear(0.0)
    for _ in range(5):
        ear.feed(b"x" * LONGEST_LINE, 1.0)
    assert len(ear._rest) <= LONGEST_LINE + 1
