"""Counts refused webhooks by source and reason, and logs each kind once a minute.

A sender may take any response for success and drop its event; these counts are then the operator's only
trace. So every 4xx and 5xx below ``/hooks`` is recorded here, wherever it arises.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import unquote

import structlog
from aiohttp import hdrs, web

from gateway.core.errors import GatewayError, RecordRejected
from gateway.http.refusal_log import RefusalLog
from gateway.http.request import caller_of, forwarded_for
from gateway.http.responses import Handler, error_response
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import RecentErrors
from gateway.sources.webhook import WebhookSource
from gateway.streams.quotas.client_address import TrustedProxies
from gateway.streams.quotas.client_limits import Caller

log = structlog.get_logger("gateway.http")

HOOK_METHODS = "POST, HEAD, OPTIONS"

ResponseT = TypeVar("ResponseT", bound=web.StreamResponse)

_IS_RECORDED = "noted"
_KNOWN_METHODS = frozenset(hdrs.METH_ALL)
_THROTTLED = HTTPStatus.TOO_MANY_REQUESTS
_METHOD_NOT_ALLOWED = HTTPStatus.METHOD_NOT_ALLOWED


class HookRefusals:
    """Records refused webhooks for metrics, log and `/status`. ``sources`` are the declared ones, by name."""

    def __init__(
        self,
        sources: Mapping[str, WebhookSource],
        proxies: TrustedProxies,
        metrics: Metrics,
        recent_errors: RecentErrors,
        base_path: str = "",
    ) -> None:
        self._root_path = f"{base_path}/hooks"
        root = re.escape(self._root_path.encode())
        self._request_line_pattern = re.compile(
            rb"[A-Za-z]+ (?:https?://[^/ ]*)?" + root + rb"(?:/([^/? ]*))?(?=[/? ]|$)"
        )
        self._sources = sources
        self._proxies = proxies
        self._metrics = metrics
        self._refusal_log = RefusalLog("hook", recent_errors)

    def record(self, source_name: str, error: GatewayError, *, client: str | None, method: str = "") -> None:
        """Record a refusal. ``source_name`` is the source in the URL, which need not exist."""
        source = self._sources.get(source_name)
        if source is not None and error.status != _THROTTLED and source.count_rejection(error, client):
            return
        label = "" if source is None else source_name
        if error.status == _THROTTLED:
            self._metrics.webhook_throttled.labels(label).inc()
        elif error.status >= 500:
            self._metrics.webhook_unavailable.labels(label, error.code).inc()
        else:
            self._metrics.events_rejected.labels(label, error.code).inc()
        times = self._refusal_log.record(
            error, label or client, throttle_key=label, source=label or None, client=client
        )
        if times is None:
            return
        # Without the name in the URL, which may be anything, even a misplaced token.
        near = get_close_matches(source_name[:100], self._sources, 1) if source is None else []
        log.warning(
            "webhook_refused",
            source=label or None,
            status=error.status,
            reason=error.code,
            why=error.message,
            method=_safe_method(method) if method else None,
            nearest_source=near[0] if near else None,
            client=client,
            times=times,
        )

    def client_address(self, request: web.Request) -> str | None:
        """Return the address of a request's sender, behind trusted proxies the forwarded one."""
        return self._proxies.client_address(caller_of(request).address, forwarded_for(request.headers))

    def record_unparsed(self, request_prefix: bytes, error: GatewayError, caller: Caller) -> None:
        """Record the refusal of an unparsable request, if its first bytes are those of a webhook."""
        if (begins := self._request_line_pattern.match(request_prefix)) is not None:
            name = unquote((begins[1] or b"").decode(errors="replace"))
            self.record(name, error, client=caller.address)

    def record_response(self, request: web.Request, error: GatewayError, response: ResponseT) -> ResponseT:
        """Record a refusal. Returns its response, marked so that the middleware skips it."""
        self.record(
            self._source_name(request), error, client=self.client_address(request), method=request.method
        )
        response[_IS_RECORDED] = True
        return response

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record refusals that no handler made: an unknown path, another method, a fault."""
        response = await handler(request)
        if response.status < 400 or _IS_RECORDED in response or not self._is_below_root(request):
            return response
        if response.status == _METHOD_NOT_ALLOWED:
            refusal = _method_error(request.method)
            response = error_response(refusal)
            response.headers[hdrs.ALLOW] = HOOK_METHODS
            return self.record_response(request, refusal, response)
        code = {404: "not_found", 500: "internal"}.get(response.status, "http_error")
        error = RecordRejected(
            "the path or the request is not one of a webhook", code=code, status=response.status
        )
        return self.record_response(request, error, response)

    def _is_below_root(self, request: web.Request) -> bool:
        path = request.rel_url.raw_path
        return path == self._root_path or path.startswith(f"{self._root_path}/")

    def _source_name(self, request: web.Request) -> str:
        """Return the name of the source in a request's path; empty without one."""
        parts = request.rel_url.raw_path.removeprefix(self._root_path).split("/", 2)
        return unquote(parts[1]) if len(parts) > 1 else ""


def _method_error(method: str) -> RecordRejected:
    message = (
        f"this path takes POST, and the request was {_safe_method(method)}: set the sender's method to POST"
    )
    if method == hdrs.METH_GET:
        message += " (HTTP clients send GET by default; Camel: CamelHttpMethod)"
    return RecordRejected(message, code="method_not_allowed", status=_METHOD_NOT_ALLOWED)


def _safe_method(method: str) -> str:
    return method if method in _KNOWN_METHODS else "another method"
