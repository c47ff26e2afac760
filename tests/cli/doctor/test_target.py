"""The URL, and its secrets."""

import io
import json

import pytest

from gateway.cli.doctor.command import DoctorReport
from gateway.cli.doctor.response import query_verdict
from gateway.cli.doctor.target import ProbeTarget
from gateway.cli.finding import Level, bad
from gateway.core.sanitize import redact_url

URL = "https://h.example/events?channel=orders&ticket=s3cr%2Bt&access_token=abcd+ef&format=data"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (URL, "https://h.example/events?channel=…&ticket=…&access_token=…&format=…"),
        ("http://user:pw@h:8080/a?secret#part", "http://h:8080/a?…"),
        ("https://h/a", "https://h/a"),
    ],
)
def test_a_url_is_shown_without_values(url: str, told: str) -> None:
    """The report ends up in tickets and chats."""
    assert redact_url(url) == told


@pytest.mark.parametrize("text", ["s3cr%2Bt", "s3cr+t", "abcd+ef", "abcd ef", "abcd%20ef", "bearer-token"])
def test_secrets_are_taken_out_of_what_servers_say(text: str) -> None:
    """Error pages repeat the URL, plain or quoted."""
    target = ProbeTarget.parse(URL, token="bearer-token")
    assert target.redact(f"no {text}, sorry") == "no …, sorry"


def test_ordinary_words_stay() -> None:
    """A channel's name is no secret: the gateway's message would lose its meaning."""
    assert ProbeTarget.parse(URL).redact("no channel 'orders'") == "no channel 'orders'"


def test_a_bare_query_is_a_secret_too() -> None:
    """?token without a name."""
    assert ProbeTarget.parse("https://h/a?bare-secret").redact("bare-secret") == "…"


def test_the_token_is_not_in_the_repr() -> None:
    """A traceback shows it."""
    assert "bearer" not in repr(ProbeTarget.parse("https://h/", token="bearer-token"))


@pytest.mark.parametrize("url", ["", "h/a", "ftp://h/a", "https:///a", "https://h:x/a", "https://h:0/", "https://u:secret@h/", "https://["])  # fmt: skip
def test_wrong_urls(url: str) -> None:
    """Refused without being repeated."""
    with pytest.raises(ValueError) as caught:
        ProbeTarget.parse(url)
    assert "secret" not in str(caught.value)


def test_the_report_is_clean() -> None:
    """A server's body must not steer the terminal, fill it, or show a secret that is cut in two."""
    out = io.StringIO()
    report = DoctorReport(ProbeTarget.parse(URL, token="bearer-token"), out)
    report.add(bad("status", "\x1b[31m" + "x" * 388 + "bearer-token" + "y" * 999, "mend\nit"))
    assert report.finish() == 1
    assert "\x1b" not in out.getvalue()
    assert "bear" not in out.getvalue()
    assert len(out.getvalue()) < 600


def test_the_report_as_json() -> None:
    """One document, for scripts."""
    out = io.StringIO()
    report = DoctorReport(ProbeTarget.parse(URL), out, is_json=True)
    report.start(70)
    assert report.finish() == 0
    told = json.loads(out.getvalue())
    assert told["counts"] == {"ok": 0, "warn": 0, "bad": 0, "skip": 0}
    assert told["url"] == redact_url(URL)


def test_names_that_the_gateway_does_not_know() -> None:
    """?chanel=a is a stream of nothing; lastEventID is another case, and a token's name is not known here."""
    target = ProbeTarget.parse("https://h/events?chanel=a&lastEventID=1-0&CHANNEL=b&access_token=x&bare&_=1")
    assert target.unknown_query_names == ["chanel", "_"]
    finding = query_verdict("chanel")
    assert (finding.level, finding.check, finding.fix) == (Level.WARN, "query", "did you mean channel=?")
    assert "x" * 41 not in query_verdict("x" * 41).message
