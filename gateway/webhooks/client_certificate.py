"""What a verified client certificate says of who has it. Pure."""

import ssl
from collections.abc import Mapping
from typing import Any

Certificate = Mapping[str, Any]
"""As `ssl.SSLSocket.getpeercert` gives it; empty or None where the client had none."""

_KINDS = ("DNS", "URI", "email")


def names(certificate: Certificate) -> frozenset[str]:
    """Return the names: those of the subjectAltName, or the common name where there is none.

    RFC 6125 §6.4.4: an authority that gives alternative names vouches for those, and not for a common name.
    """
    alternatives = certificate.get("subjectAltName", ())
    if alternatives:
        return frozenset(name for kind, name in alternatives if kind in _KINDS)
    common = [
        name for group in certificate.get("subject", ()) for kind, name in group if kind == "commonName"
    ]
    return frozenset(common) if len(common) == 1 else frozenset()


def expires(certificate: Certificate) -> float:
    """Return when it ends (unix seconds)."""
    return ssl.cert_time_to_seconds(certificate["notAfter"])
