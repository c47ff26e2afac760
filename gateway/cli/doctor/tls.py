"""Verdicts on TLS: version, trust, names, expiry, and what ALPN chose. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.cli.finding import Finding, bad, ok, warn

RENEWAL_WINDOW = timedelta(days=21)
"""A certificate that runs out earlier should have been renewed: ACME clients do it 30 days before."""

_OUTDATED_VERSIONS = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1")

# OpenSSL's X509_V_ERR_…, from x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_SELF_SIGNED = 18
_SELF_SIGNED_ROOT = 19
_NO_ISSUER = (2, 20, 21)
_REVOKED = 23
_WRONG_NAME = (62, 64)


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The server's own certificate."""

    names: Sequence[str]
    issuer: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class TlsHandshake:
    """What a handshake came to. ``verify_code`` is OpenSSL's reason not to trust, 0 if it trusts.

    ``failure`` is the reason why there was no handshake at all.
    """

    version: str | None = None
    alpn: str | None = None
    certificate: ServerCertificate | None = None
    verify_code: int = 0
    verify_message: str = ""
    failure: str = ""


def handshake_verdicts(handshake: TlsHandshake, host: str, now: datetime) -> list[Finding]:
    """Return what a handshake with ``host`` shows; the walk ends there if one of them is bad."""
    if handshake.version is None:
        return [_failure_verdict(handshake)]
    return [_version_verdict(handshake.version), _trust_verdict(handshake, host, now)]


def alpn_verdict(alpn: str | None) -> Finding:
    """Return what the HTTP version means for browsers; None is no TLS, or no choice."""
    if alpn == "h2":
        return ok("http version", "HTTP/2 is offered: streams share one connection")
    return warn(
        "http version",
        "HTTP/1.1 only: a browser opens six connections per origin, all tabs together; a seventh waits",
        "offer HTTP/2 at the proxy (nginx: http2 on; or, before 1.25, listen 443 ssl http2;),"
        " and put many channels on one stream",
    )


def _failure_verdict(handshake: TlsHandshake) -> Finding:
    if "WRONG_VERSION_NUMBER" in handshake.failure or "RECORD_LAYER_FAILURE" in handshake.failure:
        return bad(
            "tls",
            "the port answers, but not with TLS",
            "ask for http://…, or give the proxy a certificate (nginx: listen 443 ssl;)",
        )
    return bad("tls", f"no handshake: {handshake.failure}", "look into the error log of what ends TLS there")


def _version_verdict(version: str) -> Finding:
    if version in _OUTDATED_VERSIONS:
        return bad(
            "tls",
            f"{version} is the newest that it speaks: browsers refuse it",
            "allow TLS 1.2 and 1.3 (nginx: ssl_protocols TLSv1.2 TLSv1.3;)",
        )
    return ok("tls", version)


def _trust_verdict(handshake: TlsHandshake, host: str, now: datetime) -> Finding:
    if handshake.verify_code:
        return _distrust_verdict(handshake, host)
    if handshake.certificate is None:
        return ok("certificate", f"trusted, for {host}")
    left = handshake.certificate.not_after - now
    until = f"trusted, for {host}, until {handshake.certificate.not_after:%Y-%m-%d}"
    if left < RENEWAL_WINDOW:
        return warn(
            "certificate",
            f"{until}: {_format_remaining(left)} left",
            "renew it, and see why that was not done automatically",
        )
    return ok("certificate", f"{until} ({left.days} days)")


def _distrust_verdict(handshake: TlsHandshake, host: str) -> Finding:
    code, leaf = handshake.verify_code, handshake.certificate
    issuer = leaf.issuer if leaf else "its issuer"
    if code == _EXPIRED:
        when = f" on {leaf.not_after:%Y-%m-%d %H:%M} UTC" if leaf else ""
        return bad("certificate", f"it expired{when}", "renew it, and let the proxy load the new file")
    if code == _NOT_YET_VALID:
        when = f" before {leaf.not_before:%Y-%m-%d %H:%M} UTC" if leaf else ""
        return bad("certificate", f"it is not valid{when}", "set the clocks of both machines, or wait")
    if code == _SELF_SIGNED:
        return bad(
            "certificate",
            "it is self-signed: no browser trusts it",
            "get one from a CA that browsers know (Let's Encrypt); if clients were given this one, --ca FILE",
        )
    if code in _WRONG_NAME:
        names = ", ".join(leaf.names[:5]) if leaf and leaf.names else "no name"
        return bad(
            "certificate",
            f"it is for {names}, and not for {host}",
            f"get one with the name {host} in it, or check the proxy's server_name: another site answered",
        )
    if code in _NO_ISSUER:
        return bad(
            "certificate",
            f"the chain is incomplete: it ends at {issuer!r}, which is not known here",
            "send the intermediate certificates too (nginx: ssl_certificate is the fullchain file);"
            " if it is a CA of your own, --ca FILE",
        )
    if code == _SELF_SIGNED_ROOT:
        return bad(
            "certificate",
            f"its chain (from {issuer!r}) ends in a root that is not trusted here",
            "browsers need that root too; if they have it, --ca FILE",
        )
    if code == _REVOKED:
        return bad("certificate", "it was revoked", "get a new one")
    return bad(
        "certificate",
        f"not trusted: {handshake.verify_message}",
        "get a valid one, or name its CA by --ca FILE",
    )


def _format_remaining(left: timedelta) -> str:
    return f"{left.days} days" if left.days > 1 else f"{left.total_seconds() / 3600:.0f} hours"
