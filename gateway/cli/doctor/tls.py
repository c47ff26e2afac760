"""Verdicts on TLS: version, trust, names, expiry, and the ALPN protocol. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.cli.finding import Finding, bad, ok, warn

RENEWAL_WINDOW = timedelta(days=21)
"""Time before its expiry at which a certificate should be renewed: ACME clients do it 30 days before."""

_OUTDATED_VERSIONS = ("SSLv2", "SSLv3", "TLSv1", "TLSv1.1")


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The server's own certificate."""

    names: Sequence[str]
    issuer: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class TlsHandshake:
    """The result of a handshake. ``verify_code`` is OpenSSL's X509_V_ERR_… (x509_vfy.h), 0 if it trusts.

    ``failure`` is the error of a handshake that was not completed.
    """

    version: str | None = None
    alpn: str | None = None
    certificate: ServerCertificate | None = None
    verify_code: int = 0
    verify_message: str = ""
    failure: str = ""


def handshake_verdicts(handshake: TlsHandshake, host: str, now: datetime) -> list[Finding]:
    """Return the verdicts on a handshake with ``host``; if one is bad, the probe ends."""
    if handshake.version is None:
        return [_failure_verdict(handshake)]
    return [_version_verdict(handshake.version), _trust_verdict(handshake, host, now)]


def alpn_verdict(alpn: str | None) -> Finding:
    """Return the verdict on the HTTP version; None is without TLS or ALPN."""
    if alpn == "h2":
        return ok("http version", "HTTP/2 is offered: streams share one connection")
    return warn(
        "http version",
        "HTTP/1.1 only: a browser opens six connections per origin, over all tabs; a seventh waits",
        "offer HTTP/2 at the proxy (nginx: http2 on; or, before 1.25, listen 443 ssl http2;),"
        " and subscribe to many channels on one stream",
    )


def _failure_verdict(handshake: TlsHandshake) -> Finding:
    if "WRONG_VERSION_NUMBER" in handshake.failure or "RECORD_LAYER_FAILURE" in handshake.failure:
        found = "the port speaks no TLS"
        return bad("tls", found, "use http://…, or give the proxy a certificate (nginx: listen 443 ssl;)")
    return bad("tls", f"no handshake: {handshake.failure}", "see the error log of the TLS server")


def _version_verdict(version: str) -> Finding:
    if version in _OUTDATED_VERSIONS:
        found = f"{version} is its newest version: browsers reject it"
        return bad("tls", found, "allow TLS 1.2 and 1.3 (nginx: ssl_protocols TLSv1.2 TLSv1.3;)")
    return ok("tls", version)


def _trust_verdict(handshake: TlsHandshake, host: str, now: datetime) -> Finding:
    if handshake.verify_code:
        return _distrust_verdict(handshake, host)
    if handshake.certificate is None:
        return ok("certificate", f"trusted, for {host}")
    left = handshake.certificate.not_after - now
    until = f"trusted, for {host}, until {handshake.certificate.not_after:%Y-%m-%d}"
    if left < RENEWAL_WINDOW:
        remaining = f"{left.days} days" if left.days > 1 else f"{left.total_seconds() / 3600:.0f} hours"
        fix = "renew it, and find why that was not done automatically"
        return warn("certificate", f"{until}: {remaining} left", fix)
    return ok("certificate", f"{until} ({left.days} days)")


def _distrust_verdict(handshake: TlsHandshake, host: str) -> Finding:
    leaf = handshake.certificate
    issuer = leaf.issuer if leaf else "its issuer"
    found, fix = f"not trusted: {handshake.verify_message}", "get a valid one, or pass its CA with --ca FILE"
    match handshake.verify_code:
        case 9:  # not yet valid
            found = "it is not valid" + (f" before {leaf.not_before:%Y-%m-%d %H:%M} UTC" if leaf else "")
            fix = "set the clocks of both machines, or wait"
        case 10:  # expired
            found = "it expired" + (f" on {leaf.not_after:%Y-%m-%d %H:%M} UTC" if leaf else "")
            fix = "renew it, and let the proxy load the new file"
        case 18:  # self-signed
            found = "it is self-signed: no browser trusts it"
            fix = "get one from a CA that browsers trust (Let's Encrypt); if clients have this one, --ca FILE"
        case 19:  # self-signed root
            found = f"its chain (from {issuer!r}) ends in a root that is not trusted here"
            fix = "browsers need that root too; if they have it, --ca FILE"
        case 2 | 20 | 21:  # no issuer
            found = f"the chain is incomplete: it ends at {issuer!r}, which is unknown here"
            fix = "send the intermediate certificates too (nginx: ssl_certificate is the fullchain file);"
            fix += " for a private CA, --ca FILE"
        case 23:  # revoked
            found, fix = "it was revoked", "get a new one"
        case 62 | 64:  # another host name or address
            names = ", ".join(leaf.names[:5]) if leaf and leaf.names else "no name"
            found = f"it is for {names}, not for {host}"
            fix = f"get one with the name {host}, or check the proxy's server_name: another site responded"
    return bad("certificate", found, fix)
