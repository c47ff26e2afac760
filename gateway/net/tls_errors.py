"""Why a connection was refused, in plain words: clients of upstreams pass on those of OpenSSL and Redis."""

import re

_REFUSED = re.compile(
    r"(?:\[SSL: CERTIFICATE_VERIFY_FAILED\] )?certificate verify failed: (.+?)\.?(?: \(_ssl\.c:[0-9]+\))"
)
_UNAUTHENTICATED = re.compile(r"HELLO must be called with the client already authenticated.*", re.DOTALL)
"""What Redis says to RESP3 where it says ``Authentication required.`` to RESP2."""

_MISMATCH = re.compile(r"(?:Hostname|IP address) mismatch, certificate is not valid for (.+)")
_OF_OTHERS = "the server's certificate is of an authority that is not trusted here"
_SELF_SIGNED = "the server's certificate is self-signed, and not trusted here"
_WORDS = {
    "certificate has expired": "the server's certificate has expired",
    "certificate is not yet valid": "the server's certificate is not valid yet, by the clock here",
    "unable to get local issuer certificate": _OF_OTHERS,
    "unable to get issuer certificate": _OF_OTHERS,
    "unable to verify the first certificate": _OF_OTHERS,
    "self-signed certificate in certificate chain": _OF_OTHERS,
    "self signed certificate in certificate chain": _OF_OTHERS,  # OpenSSL 1.1.1
    "self-signed certificate": _SELF_SIGNED,
    "self signed certificate": _SELF_SIGNED,
}


def in_plain_words(error: str) -> str:
    """Return an error's text; what it says of a certificate or a missing password is in plain words."""
    return _UNAUTHENTICATED.sub("Authentication required.", _REFUSED.sub(_plain, error))


def refused_certificate(error: str) -> str | None:
    """Return what an error says of a refused certificate; None where it says nothing of one."""
    found = _REFUSED.search(error)
    return None if found is None else _plain(found)


def _plain(refused: re.Match[str]) -> str:
    mismatch = _MISMATCH.fullmatch(refused[1])
    if mismatch is not None:
        return f"the server's certificate is not for {mismatch[1]}"
    return _WORDS.get(refused[1], f"the server's certificate was refused: {refused[1]}")
