"""What OpenSSL says of a certificate, in words that an operator need not look up."""

import pytest

from gateway.net.tls_errors import humanize_tls_error

SSL = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {} (_ssl.c:1006)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("certificate has expired", "has expired"),
        ("certificate is not yet valid", "is not valid yet, by the clock here"),
        ("self-signed certificate", "is self-signed, and not trusted here"),
        ("unable to get local issuer certificate", "is of an authority that is not trusted here"),
        ("Hostname mismatch, certificate is not valid for 'db'.", "is not for 'db'"),
        ("IP address mismatch, certificate is not valid for '::1'.", "is not for '::1'"),
        ("CA cert does not include key usage extension", "was refused: CA cert does not include key usage extension"),
    ],
)  # fmt: skip
def test_each_cause(given: str, expected: str) -> None:
    """Which of them it is decides who has to do something."""
    text = f"Error 1 connecting to h:6380. {SSL.format(given)}."
    assert humanize_tls_error(text) == f"Error 1 connecting to h:6380. the server's certificate {expected}."


@pytest.mark.parametrize("text", ["", "Connection refused", "certificate verify failed", SSL[:40]])
def test_everything_else_stays(text: str) -> None:
    """Other errors are passed on as they are."""
    assert humanize_tls_error(text) == text
