"""Responses that are not streams: JSON on every route, for errors too."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

import msgspec
import structlog
from aiohttp import hdrs, web

try:
    from aiohttp.helpers import rfc822_formatted_time
except ImportError:  # a newer aiohttp; its own caches the text for a second

    def rfc822_formatted_time() -> str:
        """Return the time of the ``Date`` header (RFC 9110 §5.6.7)."""
        return formatdate(usegmt=True)


from gateway.core.errors import Forbidden, GatewayError, TooManyRequests, Unauthorized, Unavailable

log = structlog.get_logger("gateway.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SERVER_HEADER = "sse-gateway"
"""The ``Server`` header, without a version."""

COMMON_HEADERS: Mapping[str, str] = {hdrs.SERVER: SERVER_HEADER, "X-Content-Type-Options": "nosniff"}
"""Headers of every response. Browsers must not guess the type of a body from its content."""

HEAD_CACHE_ENTRIES = 256
"""Heads of responses that are cached: those of a herd are all the same."""

_JSON_CONTENT_TYPE = "application/json; charset=utf-8"
_REASON_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_AIOHTTP_ERRORS = {
    # Only aiohttp-cors raises it, with a text that quotes the request.
    403: ("cors_refused", "a page may not do this; see cors.origins and cors.allow_headers"),
    404: ("not_found", "there is nothing at this path"),
    405: (
        "method_not_allowed",
        "this path does not support the method; the Allow header lists those that it supports",
    ),
    413: ("too_large", "the body is too large"),
    417: ("expectation_failed", "Expect must be 100-continue"),
}
"""Code and message for the errors of aiohttp and aiohttp-cors, by status."""

_CORS_PATHS = re.compile(r"/(?:events|tickets|streams/.*)(?:/|$)")


class EarlyResponse(web.StreamResponse):
    """A response that may begin before its request's body ends. The connection stays open after both."""


class RawResponse(msgspec.Struct, frozen=True):
    """A complete response, for aiohttp or for a bare transport."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def to_aiohttp(self) -> web.Response:
        """Return it as an aiohttp response."""
        return web.Response(status=self.status, headers=self.headers, body=self.body)

    def encode_closing(self) -> bytes:
        """Return it as the bytes of an HTTP/1.1 response, the last one on its connection."""
        more: dict[str, str] = {hdrs.CONTENT_LENGTH: str(len(self.body)), hdrs.CONNECTION: "close"}
        return encode_head(self.status, self.headers, more) + self.body


def encode_head(status: int, headers: Mapping[str, str], extra_headers: Mapping[str, str]) -> bytes:
    """Return status line and header lines, with those of every response."""
    return (
        _encode_head_lines(status, (*headers.items(), *extra_headers.items()))
        + b"Date: %b\r\n\r\n" % rfc822_formatted_time().encode()
    )


@lru_cache(HEAD_CACHE_ENTRIES)
def _encode_head_lines(status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASON_PHRASES[status]}"]
    lines += [f"{name}: {value}" for name, value in headers]
    # An Origin that is not UTF-8 arrives with surrogates.
    lines += [f"{name}: {value}" for name, value in COMMON_HEADERS.items()]
    return "\r\n".join([*lines, ""]).encode("utf-8", "surrogateescape")


def json_response(data: object, *, status: int = 200) -> web.Response:
    """Return ``data`` as JSON. It ends in a newline, for terminals."""
    return web.Response(
        body=msgspec.json.encode(data) + b"\n",
        status=status,
        content_type="application/json",
        charset="utf-8",
    )


def raw_error_response(error: GatewayError) -> RawResponse:
    """Return ``{"error": code, "message": …}`` with the error's status and headers."""
    headers = {hdrs.CONTENT_TYPE: _JSON_CONTENT_TYPE, **error_headers(error)}
    return RawResponse(error.status, headers, _error_body(error.code, error.message))


def error_response(error: GatewayError) -> web.Response:
    """Return `raw_error_response` as an aiohttp response."""
    return raw_error_response(error).to_aiohttp()


def error_headers(error: GatewayError) -> dict[str, str]:
    """Return the headers that a status requires: ``WWW-Authenticate`` (RFC 6750 §3) or ``Retry-After``."""
    if isinstance(error, (Unauthorized, Forbidden)) and error.challenge is not None:
        return {hdrs.WWW_AUTHENTICATE: error.challenge}
    if isinstance(error, (Unavailable, TooManyRequests)):
        return {hdrs.RETRY_AFTER: str(error.retry_after)}
    return {}


def _error_body(code: str, message: str) -> bytes:
    # Headers that are not UTF-8 arrive with surrogates, which cannot be encoded.
    safe = message.encode(errors="backslashreplace").decode()
    return msgspec.json.encode({"error": code, "message": safe}) + b"\n"


def json_error_response(code: str, message: str, status: int) -> web.Response:
    """Return ``{"error": code, "message": …}``."""
    return RawResponse(
        status, {hdrs.CONTENT_TYPE: _JSON_CONTENT_TYPE}, _error_body(code, message)
    ).to_aiohttp()


def internal_error_response() -> web.Response:
    """Return the response to a request that failed by a fault of the gateway."""
    return json_error_response("internal", "the gateway failed; its log says why", 500)


def http_error_response(error: web.HTTPException) -> web.Response:
    """Return aiohttp's own error as JSON, without its text, which may quote the request."""
    # The frames of the router's errors hold the request until the next garbage collection.
    error.__traceback__ = None
    code, message = _AIOHTTP_ERRORS.get(error.status, ("http_error", "the request cannot be answered"))
    response = json_error_response(code, message, error.status)
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a JSON response. Only unexpected ones are logged, with their traceback."""
    try:
        return await handler(request)
    except GatewayError as error:
        return error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return http_error_response(error)
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client left; aiohttp ends the connection
    except Exception:
        resource = request.match_info.route.resource  # not the path, which may hold a secret
        log.exception("request_failed", method=request.method, route=resource and resource.canonical)
        return internal_error_response()


def close_connection_after(response: web.StreamResponse) -> None:
    """Make a response the last one of its connection, before its headers are sent.

    Without that header a proxy would send its next request into a connection that is being closed
    (RFC 9112 §9.6).
    """
    response.headers[hdrs.CONNECTION] = "close"
    response.force_close()


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Hide versions, and make caches keep one response per origin, which aiohttp-cors does not."""
    response.headers.update(COMMON_HEADERS)
    if _CORS_PATHS.search(request.path):
        response.headers.setdefault(hdrs.VARY, hdrs.ORIGIN)
