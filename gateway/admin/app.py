"""The admin port: metrics, health, status; `gateway.admin.console_page` adds the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.admin.guard import AdminGuard
from gateway.admin.status_report import ReloadResult, StatusReport
from gateway.core.errors import BadRequest, NotFound
from gateway.http.responses import add_common_headers, errors_as_json, json_response
from gateway.http.routes.health import HealthHandler, HealthSource
from gateway.observability.metrics import (
    METRICS_CONTENT_TYPE,
    MetricFamily,
    collect_cooperatively,
    render_in_parts,
)

ADMIN_HEADERS: Mapping[str, str] = {
    hdrs.CACHE_CONTROL: "no-store",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer of the port but the console's own. No page may hold it or load it."""


class AdminBackend(HealthSource, Protocol):
    """What answers on the admin port: a node, or the parent of several workers."""

    async def metric_families(self) -> Sequence[MetricFamily]:
        """Return the metrics."""

    def has_channel(self, channel: str) -> bool:
        """Tell whether a name is a channel's, or that of a template."""

    async def end_streams(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""

    async def reload(self) -> ReloadResult:
        """Read the configuration's file again. Raises NotFound where there is none."""

    async def status_report(self) -> StatusReport:
        """Return what ``/status`` shows."""


class RouteGroup(Protocol):
    """Routes of the port that others answer."""

    def add_routes(self, app: web.Application) -> None:
        """Add them."""


@dataclass(frozen=True, slots=True)
class AdminApp:
    """The handlers. Without a guard they are those of a worker's own socket, where only its parent asks."""

    backend: AdminBackend
    guard: AdminGuard | None = None
    route_groups: Sequence[RouteGroup] = ()

    def build(self) -> web.Application:
        """Return the application of the admin port; a worker's parent asks for more."""
        app = web.Application(middlewares=[errors_as_json])
        if self.guard is not None:
            app.middlewares.append(self.guard.middleware)
        app.on_response_prepare.append(add_common_headers)
        app.on_response_prepare.append(_add_admin_headers)
        app.router.add_get("/metrics", self._metrics)
        HealthHandler(self.backend, self._is_authorized).add_routes(app)
        app.router.add_get("/status", self._status)
        app.router.add_delete("/streams", self._end_streams)
        app.router.add_post("/reload", self._reload)
        if self.guard is None:
            app.router.add_get("/families", self._families)
        for each in self.route_groups:
            each.add_routes(app)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        body = b"".join(await collect_cooperatively(render_in_parts(await self.backend.metric_families())))
        return web.Response(body=body, headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def _families(self, request: web.Request) -> web.Response:
        return json_response(await self.backend.metric_families())

    async def _end_streams(self, request: web.Request) -> web.Response:
        given = [request.query.getall(name, []) for name in ("subject", "channel")]
        if max(map(len, given)) > 1:
            raise BadRequest("one subject and one channel at a time", code="bad_query")
        subject, channel = ((values or [""])[0] or None for values in given)
        if subject is None and channel is None:
            raise BadRequest("say whose: ?subject=…, ?channel=…, or both", code="bad_query")
        if channel is not None and not self.backend.has_channel(channel):
            raise NotFound("there is no such channel", code="unknown_channel")
        return json_response(await self.backend.end_streams(subject, channel), status=202)

    async def _reload(self, request: web.Request) -> web.Response:
        outcome = await self.backend.reload()
        return json_response(outcome, status=422 if outcome.result == "failed" else 200)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(await self.backend.status_report())

    def _is_authorized(self, request: web.Request) -> bool:
        return self.guard is None or self.guard.is_authorized(request)


async def _add_admin_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in ADMIN_HEADERS.items():
        response.headers.setdefault(name, value)  # a handler may know better
