"""The HTTP client of ``tail``, ``publish`` and ``doctor``: sessions, certificates, readable errors."""

import json
import os
import ssl
from typing import Any

import aiohttp
from aiohttp import hdrs

from gateway import __version__
from gateway.core.sanitize import escape_unprintable
from gateway.net.tls_errors import humanize_tls_error

CONNECT_TIMEOUT_SECONDS = 10.0
"""Seconds for a connection and its TLS handshake."""

MAX_ERROR_BODY_BYTES = 64 * 1024
"""Bytes of an error response that are read."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts to which a token may be sent without TLS."""

CONNECTION_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)
"""Exceptions of a request that got no whole response."""


class RequestFailed(Exception):
    """A request that fails as it is; ``fix`` suggests what to do, and may be empty."""

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


def client_tls_context(ca_file: str | None = None, *, is_insecure: bool = False) -> ssl.SSLContext:
    """Return a context that trusts the system's CAs and those of a file. Raises OSError, as ssl.SSLError."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    if is_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def client_session(
    command: str, tls: ssl.SSLContext | None, timeout: aiohttp.ClientTimeout
) -> aiohttp.ClientSession:
    """Return a session with a connection per request, and without cookies.

    It ignores proxies of the environment, so a token goes to the given URL only. Bodies are not
    decompressed: a coding that is not installed would raise, and a stream must be seen as it arrives.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=True if tls is None else tls, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=timeout,
        headers={hdrs.USER_AGENT: f"sse-gateway-{command}/{__version__}", hdrs.ACCEPT_ENCODING: "identity"},
    )


def stream_headers(token: str | None, last_id: str = "") -> dict[str, str]:
    """Return the headers of a request for a stream, as an EventSource sends them, and of its token."""
    headers: dict[str, str] = {hdrs.ACCEPT: "text/event-stream", hdrs.CACHE_CONTROL: "no-cache"}
    if token is not None:
        headers[hdrs.AUTHORIZATION] = f"Bearer {token}"
    if last_id:
        headers["Last-Event-ID"] = last_id
    return headers


def describe_network_error(error: BaseException) -> str:
    """Return the reason of a failed lookup, connection or handshake."""
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's message names the call instead of the reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def describe_request_error(error: BaseException) -> str:
    """Return the reason of one of `CONNECTION_ERRORS`, safe to print."""
    return escape_unprintable(humanize_tls_error(describe_network_error(getattr(error, "os_error", error))))


def parse_error(body: bytes) -> tuple[str, str]:
    """Return code and message of the gateway's JSON error, as they were sent; empty for any other body."""
    try:
        error: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(error, dict):
        return "", ""
    code = error.get("error", error.get("error_code"))  # the second is REST Proxy's, and a number
    is_ours = isinstance(code, str) or "error_code" in error
    return (str(code), str(error.get("message", ""))) if is_ours else ("", "")
