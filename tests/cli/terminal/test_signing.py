"""What ``publish`` signs passes the gateway's own verifiers."""

import base64

import pytest

from gateway.cli.terminal.signing import CannotSign, signature_headers, verification_method
from gateway.config.model.verify import VerifyConfig
from gateway.webhooks.signatures import build_verifier

KEY = "whsec_" + base64.b64encode(b"k" * 32).decode()
NOW = 1_763_870_000.5


@pytest.mark.parametrize(
    "config",
    [
        {"standard_webhooks": [KEY, "whsec_" + base64.b64encode(b"o" * 24).decode()]},
        {"github": ["geheim"]},
        {"stripe": ["whsec_abc"]},
        {"hmac": {"secrets": ["s"], "header": "X-Signature"}},
        {"hmac": {"secrets": ["s"], "header": "X-S", "algorithm": "sha512", "encoding": "base64", "prefix": "v0="}},
        {"hmac": {"secrets": ["s"], "header": "X-S", "algorithm": "sha1", "content": "v0:{timestamp}:{body}:{id}",
                  "id_header": "X-Id", "timestamp_header": "X-Time"}},
        {"bearer": ["t", "old"]},
        {"basic": ["user:pass:word"]},
        {"access_token": ["t"]},
        {"none": True},
    ],
)  # fmt: skip
def test_the_verifier_takes_it(config: dict[str, object]) -> None:
    """A test event that is refused says nothing about the gateway."""
    verify = VerifyConfig.model_validate(config)
    body = '{"a": "é"}'.encode()
    made = {name.lower(): text for name, text in signature_headers(verify, body, NOW, "push").items()}
    checker = build_verifier(verify)
    checker.check_headers(made, None)
    checker.verify_message(made, body, NOW)
    assert verification_method(verify) == next(iter(config))


def test_a_client_certificate_cannot_be_signed() -> None:
    """Its private key is the sender's."""
    with pytest.raises(CannotSign, match="curl --cert"):
        signature_headers(VerifyConfig.model_validate({"client_certificate": ["a"]}), b"", NOW, None)
