"""Bytes of a stream to what a diagnosis needs."""

import pytest

from gateway.cli.doctor.transcript import MAX_MESSAGE_BYTES, EndReason, TranscriptRecorder
from gateway.core.event import EventId
from gateway.core.sse import HEARTBEAT_COMMENT, encode_control_frame, encode_open_frame

OPEN = encode_open_frame("abc", ["orders"], "complete", id=EventId(1, 2), retry_ms=3000, heartbeat_ms=15_000)
CLOSE = encode_control_frame("stream.close", {"reason": "max_age", "reconnect": True}, retry_ms=9)


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_pieces_of_any_size(size: int, end: bytes) -> None:
    """Proxies cut where they like, and some rewrite line ends."""
    text = (OPEN + HEARTBEAT_COMMENT + b"event: x\ndata: {}\n\n" + HEARTBEAT_COMMENT + CLOSE).replace(
        b"\n", end
    )
    recorder = TranscriptRecorder(0.0)
    for at in range(0, len(text), size):
        recorder.feed(text[at : at + size], float(at))
    recorder.feed(b":", 0.0)
    transcript = recorder.finish(1.0, EndReason.STILL_OPEN)
    assert transcript.open_event is not None
    assert (transcript.open_event.resume, transcript.last_id, transcript.close_reason) == (
        "complete",
        "1-2",
        "max_age",
    )
    assert sum(arrival.heartbeats for arrival in transcript.arrivals) == 2
    assert sum(arrival.size_bytes for arrival in transcript.arrivals) == len(text) + 1


def test_heartbeats_as_events() -> None:
    """heartbeat=event in the URL."""
    recorder = TranscriptRecorder(0.0)
    recorder.feed(encode_control_frame("stream.heartbeat", {}), 1.0)
    assert recorder.finish(2.0, EndReason.STILL_OPEN).arrivals[0].heartbeats == 1


def test_a_heartbeat_that_asks_is_none_of_those() -> None:
    """It comes when it is due: right behind another one it would look like bytes that a proxy held back."""
    recorder = TranscriptRecorder(0.0)
    recorder.feed(HEARTBEAT_COMMENT + encode_control_frame("stream.heartbeat", {"nonce": "a-1-b"}), 1.0)
    assert recorder.finish(2.0, EndReason.STILL_OPEN).arrivals[0].heartbeats == 1


@pytest.mark.parametrize("data", [b"", b"no json", b"[]", b"{}"])
def test_foreign_words(data: bytes) -> None:
    """Another server's stream.open is no reason to fall over."""
    recorder = TranscriptRecorder(0.0)
    recorder.feed(b"event: stream.open\ndata: " + data + b"\n\n", 1.0)
    assert recorder.open_event is not None
    assert recorder.open_event.resume == ""


def test_an_endless_line_is_not_kept() -> None:
    """A server that never ends its line must not fill the memory."""
    recorder = TranscriptRecorder(0.0)
    for _ in range(5):
        recorder.feed(b"x" * MAX_MESSAGE_BYTES, 1.0)
    assert len(recorder._parser._partial_line) <= MAX_MESSAGE_BYTES + 1
