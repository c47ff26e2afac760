"""Answers that are not streams: JSON, for errors too, on every route."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import hdrs, web

from gateway.errors import GatewayError, TooManyRequests, Unauthorized, Unavailable

log = structlog.get_logger("gateway.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    403: "cors_refused",
    413: "too_large",
    417: "expectation_failed",
}


def json_response(data: object, *, status: int = 200) -> web.Response:
    """Return ``data`` as a JSON answer with a line end, kind to terminals."""
    return web.Response(
        body=msgspec.json.encode(data) + b"\n",
        status=status,
        content_type="application/json",
        charset="utf-8",
    )


def error_response(error: GatewayError) -> web.Response:
    """Return ``{"error": code, "message": …}`` with the status and headers of its kind."""
    response = _json_error(error.code, error.message, error.status)
    add_headers(response, error)
    return response


def add_headers(response: web.Response, error: GatewayError) -> None:
    """Add what a status asks for: ``WWW-Authenticate`` or ``Retry-After``."""
    if isinstance(error, Unauthorized):
        response.headers[hdrs.WWW_AUTHENTICATE] = error.challenge
    if isinstance(error, (Unavailable, TooManyRequests)):
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after)


def _json_error(code: str, message: str, status: int) -> web.Response:
    # Headers that are not UTF-8 arrive with surrogates, which have no encoding.
    safe = message.encode(errors="backslashreplace").decode()
    return json_response({"error": code, "message": safe}, status=status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a JSON answer; only the unforeseen is logged with its traceback."""
    try:
        return await handler(request)
    except GatewayError as error:
        return error_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        code = _CODES.get(error.status, "http_error")
        response = _json_error(code, error.text or error.reason, error.status)
        if hdrs.ALLOW in error.headers:
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return response
    except (asyncio.CancelledError, ConnectionError):
        raise  # the client left; aiohttp ends the connection
    except Exception:
        log.exception("request_failed", method=request.method, path=request.path)
        return _json_error("internal", "the gateway failed; its log says why", 500)


async def plain_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Hide versions, and let caches keep one answer per origin (aiohttp-cors does not)."""
    response.headers[hdrs.SERVER] = "sse-gateway"
    if request.path.startswith("/events"):
        response.headers.setdefault(hdrs.VARY, hdrs.ORIGIN)
