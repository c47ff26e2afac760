"""No refusal of a webhook without a trace: each is counted by source and reason, and logged once a minute.

A sender may take any answer for delivered, and drop what it sent; then these counts are all that the operator
has. So everything below ``/hooks`` that is answered 4xx or 5xx comes here, wherever it arises.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from urllib.parse import unquote

import structlog
from aiohttp import hdrs, web

from gateway.core.errors import GatewayError, Rejected
from gateway.http.request import caller_of, forwarded
from gateway.http.responses import Handler, error_response
from gateway.observability.log_throttle import Seldom
from gateway.observability.metrics import Metrics
from gateway.observability.recent_errors import Refusal, Refusals
from gateway.sources.webhook import WebhookSource
from gateway.streams.quotas.addresses import Proxies
from gateway.streams.quotas.limits import Caller

log = structlog.get_logger("gateway.http")

METHODS = "POST, HEAD, OPTIONS"

_NOTED = "noted"
_METHODS_KNOWN = frozenset(hdrs.METH_ALL)
_THROTTLED = HTTPStatus.TOO_MANY_REQUESTS
_NEVER = HTTPStatus.METHOD_NOT_ALLOWED


class HookRefusals:
    """Counts, logs, and keeps for `/status`. ``sources`` are those of the configuration, by name."""

    def __init__(
        self,
        sources: Mapping[str, WebhookSource],
        proxies: Proxies,
        metrics: Metrics,
        refusals: Refusals,
        base: str = "",
    ) -> None:
        """``base`` is `server.base_path`."""
        self._root = f"{base}/hooks"
        root = re.escape(self._root.encode())
        self._begins = re.compile(rb"[A-Za-z]+ (?:https?://[^/ ]*)?" + root + rb"(?:/([^/? ]*))?(?=[/? ]|$)")
        self._sources = sources
        self._proxies = proxies
        self._metrics = metrics
        self._refusals = refusals
        self._seldom = Seldom()

    def note(self, name: str, error: GatewayError, *, client: str | None, method: str = "") -> None:
        """Take note of a refusal. ``name`` is the source in the URL, which need not exist."""
        source = self._sources.get(name)
        if source is not None and error.status != _THROTTLED and source.refused(error, client):
            return
        label = "" if source is None else name
        if error.status == _THROTTLED:
            self._metrics.webhook_throttled.labels(label).inc()
        elif error.status >= 500:
            self._metrics.webhook_unavailable.labels(label, error.code).inc()
        else:
            self._metrics.events_rejected.labels(label, error.code).inc()
        refusal = Refusal("hook", error.code, error.message, label or None, client=client)
        self._refusals.note(label or client, refusal)
        times = self._seldom.tell((label, error.code))
        if times is None:
            return
        # Not the name in the URL: what leads nowhere may be anything, a token in the wrong place too.
        near = get_close_matches(name[:100], self._sources, 1) if source is None else []
        log.warning(
            "webhook_refused",
            source=label or None,
            status=error.status,
            reason=error.code,
            why=error.message,
            method=_shown(method) if method else None,
            nearest_source=near[0] if near else None,
            client=client,
            times=times,
        )

    def note_request(self, request: web.Request, error: GatewayError) -> None:
        """Take note of the refusal of a request."""
        self.note(self._source(request), error, client=self.client(request), method=request.method)

    def client(self, request: web.Request) -> str | None:
        """Return the address of a request's sender, also behind trusted proxies."""
        return self._proxies.client(caller_of(request).address, forwarded(request.headers))

    def note_unread(self, first: bytes, error: GatewayError, caller: Caller) -> None:
        """Take note of the refusal of what begins so, if it is a webhook that could not be read."""
        if (begins := self._begins.match(first)) is not None:
            name = unquote((begins[1] or b"").decode(errors="replace"))
            self.note(name, error, client=caller.address)

    def refusal(self, request: web.Request, error: GatewayError, response: web.Response) -> web.Response:
        """Take note of a refusal, and return its response, which is then not noted again."""
        self.note_request(request, error)
        response[_NOTED] = True
        return response

    @web.middleware
    async def trace(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Take note of refusals that no handler made: no such path, another method, a fault."""
        response = await handler(request)
        if response.status < 400 or _NOTED in response or not self._is_below_root(request):
            return response
        if response.status == _NEVER:
            error = _of_method(request.method)
            answer = error_response(error)
            answer.headers[hdrs.ALLOW] = METHODS
            return self.refusal(request, error, answer)
        code = {404: "not_found", 500: "internal"}.get(response.status, "http_error")
        self.note_request(
            request,
            Rejected("the path or the request is not one of a webhook", code=code, status=response.status),
        )
        return response

    def _is_below_root(self, request: web.Request) -> bool:
        path = request.rel_url.raw_path
        return path == self._root or path.startswith(f"{self._root}/")

    def _source(self, request: web.Request) -> str:
        """Return the name of the source in a request's path; empty where there is none."""
        parts = request.rel_url.raw_path.removeprefix(self._root).split("/", 2)
        return unquote(parts[1]) if len(parts) > 1 else ""


def _of_method(method: str) -> Rejected:
    message = f"this path takes POST, and the request was {_shown(method)}: set the sender's method to POST"
    if method == hdrs.METH_GET:
        message += " (HTTP clients send GET unless they are told otherwise; Camel: CamelHttpMethod)"
    return Rejected(message, code="method_not_allowed", status=_NEVER)


def _shown(method: str) -> str:
    return method if method in _METHODS_KNOWN else "another method"
