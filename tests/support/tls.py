"""A certificate for 127.0.0.1, made for one test run: the benchmark's."""

import ssl
from pathlib import Path

from bench.servers.certificate import certificate as make_certificate

__all__ = ["make_certificate", "trusting"]


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return a client context that trusts just this certificate."""
    return ssl.create_default_context(cafile=str(certificate))
