"""Answers of HTTP/1, read to the letter: what a proxy or a browser would take for another line must not be there."""

import re
from dataclasses import dataclass

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [A-Za-z' -]+")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t\x20-\x7e\x80-\xff]*)")

KNOWN = {
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-max-age",
    "allow",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "date",
    "retry-after",
    "server",
    "transfer-encoding",
    "vary",
    "webhook-allowed-origin",
    "webhook-allowed-rate",
    "www-authenticate",
    "x-accel-buffering",
    "x-content-type-options",
}
"""Headers of the public port, in lower case: another one was written by somebody else."""


@dataclass(frozen=True)
class Answer:
    """One of them. ``body`` is without its chunks' framing."""

    status: int
    headers: dict[str, str]
    body: bytes


def answers(raw: bytes, *, heads: bool = False) -> list[Answer]:
    """Return what came on a connection: whole answers, and a stream at the end may go on.

    ``heads``: they are to HEAD, and have no bodies, unless they say that nobody could read what was asked.
    """
    found = []
    while raw:
        head, end, rest = raw.partition(b"\r\n\r\n")
        assert end, f"no end of a head: {raw!r}"
        first, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        assert status, first
        headers = {}
        for line in lines:
            header = _HEADER.fullmatch(line)
            assert header, f"no header: {line!r}"
            name = header[1].decode().lower()
            assert name in KNOWN and name not in headers, line
            headers[name] = header[2].decode("latin-1")
        body, raw = (b"", rest) if heads and not rest.startswith(b"{") else _body(rest, headers)
        found.append(Answer(int(status[1]), headers, body))
    return found


def _body(rest: bytes, headers: dict[str, str]) -> tuple[bytes, bytes]:
    if not {"transfer-encoding", "content-length"} & set(headers) and "content-type" in headers:
        return rest, b""  # up to the end of the connection
    if "transfer-encoding" not in headers:
        length = int(headers.get("content-length", 0))
        assert len(rest) >= length, "the body breaks off"
        return rest[:length], rest[length:]
    assert "content-length" not in headers
    body = b""
    while rest:
        size, end, rest = rest.partition(b"\r\n")
        assert end and re.fullmatch(rb"[0-9a-f]+", size), size
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n", "a chunk breaks off"
        body, rest = body + rest[:length], rest[length + 2 :]
        if not length:
            return body, rest
    return body, b""
