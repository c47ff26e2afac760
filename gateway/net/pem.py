"""Loads PEM files for TLS, and explains what is wrong with one. Blocks on the disk.

OpenSSL's errors name neither the file nor the reason, so the files are checked first.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

PemRole = Literal["certificate", "key", "authority"]

MAX_PEM_BYTES = 4 * 1024 * 1024
"""Bytes of a file that are read; the CA bundle of a whole system is a quarter of it."""

_CERTIFICATE_LABELS = ("-----BEGIN CERTIFICATE-----", "-----BEGIN TRUSTED CERTIFICATE-----")
_KEY_LABEL = "PRIVATE KEY-----"
_ENCRYPTED_KEY_LABELS = ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")

_NO_CERTIFICATE = "no PEM certificate"
_KEY_MISMATCH_REASONS = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons for a key of another certificate; the last is for another kind of key (RSA and EC)."""


class PemProblem(NamedTuple):
    """A file that cannot be used; the message names it and the reason."""

    role: PemRole
    message: str


def load_certificate_and_key(
    context: ssl.SSLContext, certificate: str, key: str | None
) -> Sequence[PemProblem]:
    """Load a certificate with its chain and its key, which may be in one file; return the problems."""
    found: list[PemProblem] = []
    texts: dict[str, str] = {}
    parts: list[tuple[PemRole, str]] = [("certificate", certificate)]
    parts += [("key", key)] if key is not None else []
    for part, file in parts:
        try:
            texts[part] = _read_text(file)
        except OSError as error:
            found.append(PemProblem(part, f"cannot read {file}: {error.strerror}"))
    text = texts.get("certificate")
    if text is not None and not _contains_any(text, _CERTIFICATE_LABELS):
        other = "a private key and no certificate; are certificate and key swapped?"
        found.append(
            PemProblem(
                "certificate", f"{certificate} holds {other if _KEY_LABEL in text else _NO_CERTIFICATE}"
            )
        )
    text = texts.get("key" if key is not None else "certificate")
    if text is not None and _KEY_LABEL not in text:
        other = "a certificate and no private key; are certificate and key swapped?"
        holds = (
            other if key is not None and _contains_any(text, _CERTIFICATE_LABELS) else "no PEM private key"
        )
        found.append(PemProblem("key", f"{key or certificate} holds {holds}"))
    elif text is not None and _contains_any(text, _ENCRYPTED_KEY_LABELS):
        found.append(
            PemProblem(
                "key",
                f"{key or certificate} is encrypted, and must have no password;"
                f" openssl pkey -in {key or certificate} decrypts it",
            )
        )
    if found:
        return found
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        if reason in _KEY_MISMATCH_REASONS:
            return [PemProblem("key", f"{key or certificate} is not the key of {certificate}")]
        return [PemProblem("certificate", f"{certificate} and {key or 'its key'} cannot be used ({reason})")]
    return []


def load_ca_file(context: ssl.SSLContext, file: str) -> Sequence[PemProblem]:
    """Trust the CA certificates in a file; return the problems."""
    try:
        text = _read_text(file)
        if not _contains_any(text, _CERTIFICATE_LABELS):
            return [
                PemProblem(
                    "authority",
                    f"{file} holds {'a private key and ' if _KEY_LABEL in text else ''}{_NO_CERTIFICATE}",
                )
            ]
        context.load_verify_locations(cafile=file)
    except (ssl.SSLError, OSError) as error:
        if isinstance(error, ssl.SSLError):
            return [PemProblem("authority", f"{file} holds {_NO_CERTIFICATE} ({error.reason or error})")]
        return [PemProblem("authority", f"cannot read {file}: {error.strerror}")]
    return []


def _contains_any(text: str, labels: Sequence[str]) -> bool:
    return any(label in text for label in labels)


def _read_text(file: str) -> str:
    with Path(file).open("rb") as opened:
        return opened.read(MAX_PEM_BYTES).decode("latin-1")


def _refuse_password() -> str:
    # Without this, OpenSSL would prompt on the terminal, and wait.
    raise ValueError("the key is encrypted; the gateway needs one without a password")
