"""The verdicts that no server at hand provokes; `test_walk` has the others."""

import datetime
from dataclasses import replace

import pytest

from gateway.cli.doctor.cors import origin_verdict, preflight_verdict, vary_verdict
from gateway.cli.doctor.response import ResponseHead, headers_verdict, status_verdict, type_verdict
from gateway.cli.doctor.streaming import (
    ProbeTimeouts,
    ending_verdict,
    first_bytes_verdict,
    heartbeat_verdict,
    resume_verdict,
    unanswered_verdict,
)
from gateway.cli.doctor.tls import TlsHandshake, handshake_verdicts
from gateway.cli.doctor.transcript import Arrival, EndReason, OpenEvent, Transcript
from gateway.cli.finding import Level

APP = "https://app.example.com"
PATIENCE = ProbeTimeouts()
WELL = Transcript(
    0.01, tuple(Arrival(0.02 + 15 * beat, 2, min(beat, 1)) for beat in range(5)), 70, EndReason.STILL_OPEN, OpenEvent("none"), None, "1-0"
)  # fmt: skip


def head(*headers: tuple[str, str], status: int = 200) -> ResponseHead:
    return ResponseHead(status, headers)


@pytest.mark.parametrize(
    ("headers", "level", "word"),
    [
        ([("Access-Control-Allow-Origin", APP)], Level.OK, "without cookies"),
        ([("access-control-allow-origin", APP), ("Access-Control-Allow-Credentials", "true")], Level.OK, "with cookies"),
        ([("Access-Control-Allow-Origin", "*")], Level.OK, "every page"),
        ([("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Credentials", "true")], Level.BAD, "together"),
        ([("Access-Control-Allow-Origin", "null")], Level.BAD, "sandboxed"),
        ([("Access-Control-Allow-Origin", "https://other.example")], Level.BAD, ", not https"),
        ([("Access-Control-Allow-Origin", f"{APP}, {APP}")], Level.BAD, "more than once"),
        ([("Access-Control-Allow-Origin", APP)] * 2, Level.BAD, "more than once"),
        ([("Access-Control-Allow-Origin", APP), ("Access-Control-Allow-Credentials", "TRUE")], Level.BAD, "'TRUE'"),
        ([], Level.BAD, "no Access-Control-Allow-Origin"),
    ],
)  # fmt: skip
def test_who_may_read(headers: list[tuple[str, str]], level: Level, word: str) -> None:
    """What browsers refuse must be bad, and nothing else."""
    finding = origin_verdict(head(*headers), APP)
    assert finding.level is level
    assert word in finding.message


@pytest.mark.parametrize(
    ("headers", "level"),
    [
        ([("Vary", "Accept-Encoding"), ("Vary", "origin")], Level.OK),
        ([("Vary", "Accept-Encoding, Origin")], Level.OK),
        ([("Vary", "*")], Level.OK),
        ([("Access-Control-Allow-Origin", "*")], Level.OK),
        ([("Vary", "Accept-Encoding")], Level.BAD),
    ],
)
def test_vary(headers: list[tuple[str, str]], level: Level) -> None:
    """It is a list, in any case, over any number of headers."""
    assert vary_verdict(head(*headers)).level is level


@pytest.mark.parametrize(
    ("allowed", "credentials", "missing"),
    [
        ("Authorization, Last-Event-ID", "true", None),
        ("authorization,last-event-id,x", "", None),
        ("last-event-id", "true", "authorization"),
        ("*", "", "authorization"),
        ("*", "true", "authorization, last-event-id"),
    ],
)
def test_headers_that_a_preflight_allows(allowed: str, credentials: str, missing: str | None) -> None:
    """The star does not stand for Authorization, and with credentials for nothing."""
    headers = [("Access-Control-Allow-Origin", APP), ("Access-Control-Allow-Headers", allowed)]
    if credentials:
        headers.append(("Access-Control-Allow-Credentials", credentials))
    finding = preflight_verdict(head(*headers), APP)
    assert (finding.level is Level.OK) == (missing is None)
    assert missing is None or finding.message.endswith(f"lacks {missing}")


@pytest.mark.parametrize(
    ("headers", "level", "word"),
    [
        ([("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no")], Level.OK, "arrive"),
        ([("Cache-Control", "no-cache, no-transform"), ("Server", "nginx/1.22")], Level.OK, "for itself"),
        ([("Cache-Control", "no-cache, no-transform"), ("Server", "cdn")], Level.WARN, "X-Accel-Buffering"),
        ([("Cache-Control", "no-cache")], Level.WARN, "no-transform"),
        ([], Level.WARN, "missing"),
        ([("Cache-Control", "public, max-age=60")], Level.WARN, "max-age=60"),
    ],
)
def test_words_to_proxies(headers: list[tuple[str, str]], level: Level, word: str) -> None:
    """What one proxy takes away, the next one does not heed."""
    finding = headers_verdict(head(*headers))
    assert finding.level is level
    assert word in finding.message


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("text/event-stream", Level.OK),
        ("Text/Event-Stream; charset=UTF-8", Level.OK),
        ("text/event-stream;charset=iso-8859-1", Level.WARN),
        ("text/plain", Level.BAD),
        ("", Level.BAD),
    ],
)
def test_content_types(value: str, level: Level) -> None:
    """Case and charset as clients see them."""
    assert type_verdict(head(("Content-Type", value))).level is level


@pytest.mark.parametrize(
    ("status", "body", "has_token", "words"),
    [
        (401, b'{"error":"missing_token","message":"m"}', False, ["missing_token: m", "--token-env"]),
        (401, b'{"error":"invalid_token","message":"m"}', True, ["another token"]),
        (403, b'{"error":"channel_forbidden","message":"m"}', True, ["access"]),
        (404, b"<html>\n <h1>Not here</h1>", False, ["<html> <h1>Not here</h1>", "the proxy's path"]),
        (404, b'{"error":"unknown_channel","message":"m"}', False, ["declared channel"]),
        (429, b"", False, ["limit"]),
        (504, b"\xff", False, ["/readyz"]),
        (500, b'{"error":5}', False, ['{"error":5}', "log"]),
    ],
)
def test_statuses(status: int, body: bytes, has_token: bool, words: list[str]) -> None:
    """The suggested fix depends on the server that responds: the gateway or a proxy."""
    finding = status_verdict(head(status=status), body, has_token=has_token)
    assert finding.level is Level.BAD
    for word in words:
        assert word in finding.message + finding.fix


def test_a_stream_that_is_well() -> None:
    """70 s with a heartbeat every 15 s: the default, on a gateway with its defaults."""
    for verdict in (first_bytes_verdict, heartbeat_verdict, ending_verdict):
        assert verdict(WELL, PATIENCE).level is Level.OK


def test_first_bytes() -> None:
    """Headers that come alone are a buffering proxy; late ones are not."""
    none = replace(WELL, arrivals=(), end_at_seconds=10.0, open_event=None)
    assert "then no byte within 10.0 s: a proxy buffers" in first_bytes_verdict(none, PATIENCE).message
    assert (
        "ended without a byte"
        in first_bytes_verdict(replace(none, end_reason=EndReason.BODY_ENDED), PATIENCE).message
    )
    late = replace(WELL, arrivals=(Arrival(6.0, 200, 0),))
    assert "a proxy buffered them" in first_bytes_verdict(late, PATIENCE).message
    slow = replace(WELL, head_at_seconds=6.0, arrivals=(Arrival(6.0, 200, 0),))
    assert first_bytes_verdict(slow, PATIENCE).level is Level.WARN
    assert "another server" in first_bytes_verdict(replace(WELL, open_event=None), PATIENCE).fix
    assert "check that the proxy reaches" in unanswered_verdict(10.0, None).fix


def test_heartbeats() -> None:
    """Bunched heartbeats and long silence are reported; a short look proves nothing."""
    lump = replace(WELL, arrivals=(*WELL.arrivals[:1], Arrival(60.0, 8, 4)))
    assert "3 of 4 heartbeats arrived together" in heartbeat_verdict(lump, PATIENCE).message
    near = replace(WELL, arrivals=(*WELL.arrivals, Arrival(60.1, 2, 1)))
    assert "1 of 5 heartbeats arrived together" in heartbeat_verdict(near, PATIENCE).message
    events = replace(WELL, arrivals=tuple(Arrival(at / 10, 90, 0) for at in range(700)))
    assert heartbeat_verdict(events, PATIENCE).level is Level.OK
    rare = replace(WELL, arrivals=(*WELL.arrivals[:1], Arrival(50.0, 2, 1)))
    assert "up to 50.0 s" in heartbeat_verdict(rare, PATIENCE).message
    short = replace(WELL, arrivals=WELL.arrivals[:1], end_at_seconds=5.0)
    assert "--seconds 40" in heartbeat_verdict(short, PATIENCE).fix
    assert (
        heartbeat_verdict(replace(short, end_reason=EndReason.CONNECTION_LOST), PATIENCE).level is Level.SKIP
    )


def test_what_ends_a_stream() -> None:
    """Cut in silence is an idle timeout; cut after a longer silence was survived is not."""
    idle = replace(
        WELL, arrivals=WELL.arrivals[:1], end_at_seconds=10.02, end_reason=EndReason.CONNECTION_LOST
    )
    assert "cut after 10.0 s without a byte" in ending_verdict(idle, PATIENCE).message
    limit = replace(WELL, end_at_seconds=65.0, end_reason=EndReason.BODY_ENDED)
    assert "ended 65.0 s after the request" in ending_verdict(limit, PATIENCE).message
    assert "duration of requests" in ending_verdict(limit, PATIENCE).message
    unknown = replace(WELL, close_reason="new_reason")
    assert "docs/operations.md" in ending_verdict(unknown, PATIENCE).fix


def test_resume() -> None:
    """A channel without ids has nothing to resume; a refused second stream is reported."""
    assert resume_verdict(replace(WELL, last_id=""), None).level is Level.SKIP
    assert resume_verdict(replace(WELL, open_event=None), None).level is Level.SKIP
    assert resume_verdict(WELL, None).level is Level.BAD
    refused = replace(WELL, open_event=None, close_reason="overloaded")
    assert resume_verdict(WELL, refused).message.endswith("overloaded")
    assert resume_verdict(WELL, replace(WELL, open_event=OpenEvent("complete"))).level is Level.OK


@pytest.mark.parametrize(("code", "word"), [(19, "root"), (23, "revoked"), (77, "strange")])
def test_rarer_reasons_not_to_trust(code: int, word: str) -> None:
    """Every code of OpenSSL has a sentence, without the certificate too."""
    seen = TlsHandshake("TLSv1.3", verify_code=code, verify_message="strange")
    *_, finding = handshake_verdicts(seen, "host", datetime.datetime.now(datetime.UTC))
    assert word in finding.message
