"""aiohttp's protocol with our own error responses.

By itself, aiohttp answers invalid HTTP and errors outside of middlewares with text that quotes the request,
and logs a traceback for each. Any client can cause these as often as it likes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_request import BaseRequest

from gateway.core.errors import RecordRejected
from gateway.http.responses import (
    COMMON_HEADERS,
    error_response,
    http_error_response,
    internal_error_response,
)
from gateway.streams.quotas.client_limits import Caller

try:
    from aiohttp.web_protocol import _ErrInfo
except ImportError:  # a newer aiohttp; needed only to refuse other HTTP versions
    _ErrInfo = None  # type: ignore[assignment,misc]

log = structlog.get_logger("gateway.http")

MAX_URL_BYTES = 8190
"""Longest URL, in bytes."""

MAX_HEADER_BYTES = 8192
"""Longest header with its name, in bytes.

Unlike `MAX_URL_BYTES`: aiohttp's errors differ by the limit alone.
"""

REQUEST_PREFIX_BYTES = 64
"""Bytes of a request that are kept until its response: if it cannot be parsed, they show what it was for."""

OnRefused = Callable[[bytes, RecordRejected, Caller], None]

SUPPORTED_HTTP_VERSIONS = (HttpVersion11, HttpVersion10)
"""aiohttp would answer other versions in the version of the request."""


class UnsupportedHttpVersion(HttpProcessingError):
    """A request has a version other than HTTP/1.1 and HTTP/1.0."""


class AiohttpProtocol(web.RequestHandler):
    """One connection. ``headers`` are added to every response on its port.

    ``on_lost`` is called with its caller when it is gone, ``on_data`` whenever data arrives, ``on_refused``
    with the first bytes of a request that is refused before any handler sees it, and the error.
    """

    __slots__ = (
        "_headers",
        "_is_broken",
        "_on_data",
        "_on_lost",
        "_on_refused",
        "_request_prefix",
        "caller",
        "can_detach",
    )

    def __init__(
        self,
        manager: web.Server,
        *,
        headers: Mapping[str, str],
        caller: Caller,
        on_lost: Callable[[Caller], None],
        on_data: Callable[[], None] | None,
        on_refused: OnRefused | None,
        can_retire: bool,
        **options: Any,
    ) -> None:
        super().__init__(manager, max_line_size=MAX_URL_BYTES, max_field_size=MAX_HEADER_BYTES, **options)
        self._headers = {**headers, **COMMON_HEADERS}
        self.caller = caller
        self._on_lost: Callable[[Caller], None] | None = on_lost
        self._on_data = on_data
        self._on_refused = on_refused
        self._request_prefix = b""
        self._is_broken = False
        self.can_detach = can_retire
        """Whether the connection may outlive this protocol (`gateway.streams.upgrade`)."""

    def data_received(self, data: bytes) -> None:
        """Parse data, up to the first invalid request: nothing behind it is read."""
        if self._is_broken:
            return
        if self._on_data is not None:
            self._on_data()
        if self._on_refused is not None and not self._request_prefix:
            self._request_prefix = data[:REQUEST_PREFIX_BYTES]
        super().data_received(data)
        self._reject_invalid_messages()

    def _reject_invalid_messages(self) -> None:
        """Refuse requests of other versions, and read nothing behind a refused or invalid one."""
        # In an aiohttp without these, the listener refuses other versions, and memory is freed later.
        messages = getattr(self, "_messages", None)
        if messages is None or _ErrInfo is None:
            return
        for index, (message, _) in enumerate(messages):
            error = getattr(message, "exc", None)
            if error is None and getattr(message, "version", HttpVersion11) not in SUPPORTED_HTTP_VERSIONS:
                error = UnsupportedHttpVersion()
                while len(messages) > index:
                    messages.pop()
                messages.append((_ErrInfo(505, error, ""), EMPTY_PAYLOAD))
            if error is not None:
                self._is_broken = True
                # The traceback's frame refers to the error and the bytes, megabytes each, and this cycle
                # would live until the next garbage collection.
                error.__traceback__ = None
                return

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone, or a stream took it over."""
        self.release_connection()
        super().connection_lost(exc)

    def release_connection(self) -> None:
        """Uncount the connection. Harmless when repeated."""
        if self._on_lost is not None:
            self._on_lost(self.caller)
            self._on_lost = None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a request that aiohttp cannot parse, or cannot hand to a handler."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("the client left, or would take this for the rest of a response")
        if isinstance(exc, HttpProcessingError):
            error = _map_parse_error(exc)
            response = error_response(error)
        else:
            log.error("request_failed", exc_info=exc)
            error = RecordRejected("the gateway failed; its log says why", code="internal", status=500)
            response = internal_error_response()
        if self._on_refused is not None:
            self._on_refused(self._request_prefix, error, self.caller)
        response.headers.update({**self._headers, hdrs.CONNECTION: "close"})
        response.force_close()
        return response

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response.

        An error that no middleware saw, such as that of an Expect header, becomes JSON.
        """
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            resp = http_error_response(resp)
        if request.version < HttpVersion11 and hdrs.TRANSFER_ENCODING in request.headers:
            # RFC 9112 §6.1: an HTTP/1.0 proxy may have taken the body for the next request.
            resp.force_close()
        self._request_prefix = b""
        finished = await super().finish_response(request, resp, start_time)
        self._reject_invalid_messages()  # aiohttp goes on reading behind a declined upgrade
        return finished

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log a fault of the gateway. Invalid or incomplete requests are none."""
        error = kw.get("exc_info")
        if not isinstance(error, (web.RequestPayloadError, HttpProcessingError, ConnectionError)):
            log.error("connection_failed", exc_info=error)


def _map_parse_error(error: HttpProcessingError) -> RecordRejected:
    # RFC 9110 §15.6.6. The parser accepts some versions that are unsupported here; this is its text for the
    # rest.
    if isinstance(error, UnsupportedHttpVersion) or "Invalid HTTP version" in error.message:
        return RecordRejected("this port speaks HTTP/1.1 and HTTP/1.0", code="http_version", status=505)
    # RFC 9110 §15.5.15, RFC 6585 §5.
    if isinstance(error, LineTooLong) and MAX_URL_BYTES in error.args:
        return RecordRejected(f"the URL is longer than {MAX_URL_BYTES} bytes", code="bad_http", status=414)
    if isinstance(error, LineTooLong):
        return RecordRejected(
            f"a header is longer than {MAX_HEADER_BYTES} bytes", code="bad_http", status=431
        )
    return RecordRejected("the request is not valid HTTP/1.1 or HTTP/1.0", code="bad_http", status=400)
