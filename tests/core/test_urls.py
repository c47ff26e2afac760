"""URLs in messages."""

import pytest

from gateway.core.sanitize import redact_url


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://id.example.com/keys", "https://id.example.com/keys"),
        (
            "https://id.example.com:8443/keys?key=s3cret&tenant=a",
            "https://id.example.com:8443/keys?key=…&tenant=…",
        ),
        ("https://id.example.com/keys?s3cret", "https://id.example.com/keys?…"),
        ("https://user:s3cret@id.example.com/keys#s3cret", "https://id.example.com/keys"),
        ("https://[::1]:1/?a=s3cret=s3cret&&", "https://[::1]:1/?a=…"),
        ("", ""),
    ],
)
def test_secrets_of_a_url_are_hidden(url: str, told: str) -> None:
    """Logs and builds' output are read by more people than the file."""
    assert redact_url(url) == told
