"""PEM files of TLS, and which of them cannot be used, and why. Blocks on the disk.

OpenSSL's errors name neither the file nor the mistake, so the files are looked at first.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

Part = Literal["certificate", "key", "authority"]

MAX_BYTES = 4 * 1024 * 1024
"""Largest file; the authorities of a whole system take a quarter of it."""

_CERTIFICATE = ("-----BEGIN CERTIFICATE-----", "-----BEGIN TRUSTED CERTIFICATE-----")
_KEY = "PRIVATE KEY-----"
_ENCRYPTED = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")

_NONE = "no PEM certificate"
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons for a key that is another one's; the last for one of another kind, RSA to an EC."""


class Trouble(NamedTuple):
    """A file that cannot be used, and why; the message names it."""

    part: Part
    message: str


def load_identity(context: ssl.SSLContext, certificate: str, key: str | None) -> Sequence[Trouble]:
    """Load a certificate with its chain and its key, which may be in one file; return what is wrong."""
    found: list[Trouble] = []
    texts: dict[str, str] = {}
    parts: list[tuple[Part, str]] = [("certificate", certificate)]
    parts += [("key", key)] if key is not None else []
    for part, file in parts:
        try:
            texts[part] = _text(file)
        except OSError as error:
            found.append(Trouble(part, f"cannot read {file}: {error.strerror}"))
    text = texts.get("certificate")
    if text is not None and not _holds(text, _CERTIFICATE):
        other = "a private key and no certificate; are certificate and key swapped?"
        found.append(Trouble("certificate", f"{certificate} holds {other if _KEY in text else _NONE}"))
    text = texts.get("key" if key is not None else "certificate")
    if text is not None and _KEY not in text:
        other = "a certificate and no private key; are certificate and key swapped?"
        holds = other if key is not None and _holds(text, _CERTIFICATE) else "no PEM private key"
        found.append(Trouble("key", f"{key or certificate} holds {holds}"))
    elif text is not None and _holds(text, _ENCRYPTED):
        found.append(
            Trouble(
                "key",
                f"{key or certificate} is encrypted; the key must have no password:"
                f" openssl pkey -in {key or certificate} writes it without",
            )
        )
    if found:
        return found
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason in _MISMATCHES:
            return [Trouble("key", f"{key or certificate} is not the key of {certificate}")]
        return [Trouble("certificate", f"{certificate} and {key or 'its key'} cannot be used ({reason})")]
    return []


def load_authority(context: ssl.SSLContext, file: str) -> Sequence[Trouble]:
    """Trust the certificates in a file; return what is wrong."""
    try:
        text = _text(file)
        if not _holds(text, _CERTIFICATE):
            return [
                Trouble("authority", f"{file} holds {'a private key and ' if _KEY in text else ''}{_NONE}")
            ]
        context.load_verify_locations(cafile=file)
    except (ssl.SSLError, OSError) as error:
        if isinstance(error, ssl.SSLError):
            return [Trouble("authority", f"{file} holds {_NONE} ({error.reason or error})")]
        return [Trouble("authority", f"cannot read {file}: {error.strerror}")]
    return []


def _holds(text: str, labels: Sequence[str]) -> bool:
    return any(label in text for label in labels)


def _text(file: str) -> str:
    with Path(file).open("rb") as opened:
        return opened.read(MAX_BYTES).decode("latin-1")


def _refuse_password() -> str:
    # OpenSSL would ask the terminal, and wait.
    raise ValueError("the key is encrypted; the gateway needs one without a password")
