"""Decoders that formats and signatures share. Pure."""

import base64

from gateway.core.errors import RecordRejected

WHITESPACE = b" \t\r\n"
"""White space between JSON tokens (RFC 8259 §2)."""


def decode_base64(text: str) -> bytes:
    """Return the bytes of strict base64. Raises ValueError."""
    return base64.b64decode(text, validate=True)  # binascii.Error is a ValueError


def decode_base64_field(text: str, field: str) -> bytes:
    """Return the bytes of a record's field. Raises RecordRejected (``bad_records``)."""
    try:
        return decode_base64(text)
    except ValueError:
        raise RecordRejected(f"the {field} is not base64", code="bad_records") from None
