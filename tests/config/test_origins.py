"""Which origins a rule allows: the table that attacks on CORS are made of."""

import pytest

from gateway.config.model.origins import OriginRules, normalize_origin_rule


@pytest.mark.parametrize(
    ("rule", "origin", "allowed"),
    [
        ("https://app.example.com", "https://app.example.com", True),
        ("https://app.example.com", "http://app.example.com", False),
        ("https://app.example.com", "https://app.example.com:8443", False),
        ("https://app.example.com:8443", "https://app.example.com:8443", True),
        ("https://app.example.com", "https://APP.example.com", False),
        ("https://app.example.com", "https://app.example.com.", False),
        ("https://app.example.com", "https://app.example.com.evil", False),
        ("https://app.example.com", "null", False),
        ("https://app.example.com", "", False),
        ("https://app.example.com", "https://user@app.example.com", False),
        ("https://*.example.com", "https://app.example.com", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://evil-example.com", False),
        ("https://*.example.com", "https://a.b.example.com", False),
        ("https://*.example.com", "https://.example.com", False),
        ("https://*.example.com", "http://app.example.com", False),
        ("https://*.example.com", "https://evil.com/.example.com", False),
        ("https://*.example.com", "https://evil.com#.example.com", False),
        ("https://*.example.com", "https://a\x00.example.com", False),
        ("https://*.example.com:444", "https://app.example.com:444", True),
        ("https://*.example.com", "https://app.example.com:444", False),
        ("*", "https://anything.example", True),
        ("*", "null", True),
        ("*", "https://a b", False),
        ("*", "https://a\r\nX: y", False),
        ("*", "https://\udcff", False),
        ("HTTPS://App.Example.com:443", "https://app.example.com", True),
        ("http://localhost:80", "http://localhost", True),
        ("https://bücher.example", "https://xn--bcher-kva.example", True),
        ("http://[::1]:3000", "http://[::1]:3000", True),
    ],
)
def test_the_table(rule: str, origin: str, allowed: bool) -> None:
    """Each line is a way in which a policy was once read wrong."""
    assert OriginRules([rule]).allows(origin) is allowed


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("app.example.com", "needs a scheme; write 'https://app.example.com'"),
        ("https://app.example.com/", "no trailing slash; write 'https://app.example.com'"),
        ("https://app.example.com/x", "no path; write 'https://app.example.com'"),
        ("https://u:p@app.example.com", "no user"),
        ("null", "sandboxed"),
        ("file://", "opened from a file sends the origin 'null'"),
        ("file:///home/a/page.html", "opened from a file"),
        ("https://*", "not a host|wildcard"),
        ("https://*.com", "everybody"),
        ("https://a*.example.com", "whole first label"),
        ("https://*.*.example.com", "whole first label"),
        ("https://app.example.com:99999", "port"),
        ("https://", "not a host"),
    ],
)
def test_a_rule_that_would_not_do_what_it_says_is_an_error(rule: str, message: str) -> None:
    """The message says what would be right."""
    with pytest.raises(ValueError, match=message):
        normalize_origin_rule(rule)
