"""Rewrites the error messages of OpenSSL and Redis for refused connections in plain words. Pure."""

import re

_VERIFY_FAILED = re.compile(
    r"(?:\[SSL: CERTIFICATE_VERIFY_FAILED\] )?certificate verify failed: (.+?)\.?(?: \(_ssl\.c:[0-9]+\))"
)
_RESP3_AUTH_REQUIRED = re.compile(r"HELLO must be called with the client already authenticated.*", re.DOTALL)
"""Redis's message with RESP3; with RESP2 it is ``Authentication required.``"""

_HOST_MISMATCH = re.compile(r"(?:Hostname|IP address) mismatch, certificate is not valid for (.+)")
_UNTRUSTED_AUTHORITY = "the server's certificate is of an authority that is not trusted here"
_SELF_SIGNED = "the server's certificate is self-signed, and not trusted here"
_DESCRIPTIONS = {
    "certificate has expired": "the server's certificate has expired",
    "certificate is not yet valid": "the server's certificate is not valid yet, by the clock here",
    "unable to get local issuer certificate": _UNTRUSTED_AUTHORITY,
    "unable to get issuer certificate": _UNTRUSTED_AUTHORITY,
    "unable to verify the first certificate": _UNTRUSTED_AUTHORITY,
    "self-signed certificate in certificate chain": _UNTRUSTED_AUTHORITY,
    "self signed certificate in certificate chain": _UNTRUSTED_AUTHORITY,  # OpenSSL 1.1.1
    "self-signed certificate": _SELF_SIGNED,
    "self signed certificate": _SELF_SIGNED,
}


def humanize_tls_error(error: str) -> str:
    """Return an error's message with certificate errors and a missing password in plain words."""
    return _RESP3_AUTH_REQUIRED.sub(
        "Authentication required.", _VERIFY_FAILED.sub(_describe_verify_failure, error)
    )


def describe_certificate_error(error: str) -> str | None:
    """Return why an error's certificate was rejected; None if the error is about something else."""
    found = _VERIFY_FAILED.search(error)
    return None if found is None else _describe_verify_failure(found)


def _describe_verify_failure(refused: re.Match[str]) -> str:
    mismatch = _HOST_MISMATCH.fullmatch(refused[1])
    if mismatch is not None:
        return f"the server's certificate is not for {mismatch[1]}"
    return _DESCRIPTIONS.get(refused[1], f"the server's certificate was refused: {refused[1]}")
