"""The routes of the admin port: metrics, health, status, reload, ending streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.admin.guard import AdminGuard
from gateway.admin.status_report import ConfigStatus, ReloadResult, StatusReport
from gateway.config.channel_catalog import ChannelCatalog
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
"""Headers of every response but the console's page: no page may frame or load it."""


class ConfigReloader(Protocol):
    """Reloads the configuration file: `gateway.server.reload.Reloader`."""

    async def reload(self, trigger: str) -> ReloadResult:
        """Read the file and apply it. ``trigger`` is for the log."""

    def config_status(self) -> ConfigStatus:
        """Return what ``/status`` shows of the configuration."""


class AdminBackend(HealthSource, Protocol):
    """What answers on the admin port: a node, or the parent of several workers."""

    catalog: ChannelCatalog

    @property
    def reloader(self) -> ConfigReloader | None:
        """None without a configuration file, and in a worker, whose parent reloads."""

    async def metric_families(self) -> Sequence[MetricFamily]:
        """Return the metrics."""

    async def end_streams(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""

    async def status_report(self) -> StatusReport:
        """Return what ``/status`` shows."""


class RouteGroup(Protocol):
    """Further routes of the port."""

    def add_routes(self, app: web.Application) -> None:
        """Add them."""


@dataclass(frozen=True, slots=True)
class AdminApp:
    """The handlers. Without a guard they are those of a worker's own socket, which only its parent uses."""

    backend: AdminBackend
    guard: AdminGuard | None = None
    route_groups: Sequence[RouteGroup] = ()

    def build(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[errors_as_json])
        if self.guard is not None:
            app.middlewares.append(self.guard.middleware)
        app.on_response_prepare.append(add_common_headers)
        app.on_response_prepare.append(_add_admin_headers)
        app.router.add_get("/metrics", self._metrics)
        HealthHandler(self.backend, self._is_authorized).add_routes(app, lambda path: [path])
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
        parameters = [request.query.getall(name, []) for name in ("subject", "channel")]
        if max(map(len, parameters)) > 1:
            raise BadRequest("subject and channel may each be given once", code="bad_query")
        subject, channel = ((values or [""])[0] or None for values in parameters)
        if subject is None and channel is None:
            raise BadRequest("name the streams to end: ?subject=…, ?channel=…, or both", code="bad_query")
        if channel is not None and not self.backend.catalog.has_channel(channel):
            raise NotFound("there is no such channel", code="unknown_channel")
        return json_response(await self.backend.end_streams(subject, channel), status=202)

    async def _reload(self, request: web.Request) -> web.Response:
        if self.backend.reloader is None:
            raise NotFound("there is no configuration file to reload")
        result = await self.backend.reloader.reload("POST /reload")
        return json_response(result, status=422 if result.result == "failed" else 200)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(await self.backend.status_report())

    def _is_authorized(self, request: web.Request) -> bool:
        return self.guard is None or self.guard.is_authorized(request)


async def _add_admin_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in ADMIN_HEADERS.items():
        response.headers.setdefault(name, value)  # a handler may have set its own
