"""The admin port: metrics, health, status."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway.http.responses import errors_as_json, json_response, plain_headers
from gateway.metrics import CONTENT_TYPE, Metrics


@dataclass(frozen=True, slots=True)
class Admin:
    """Handlers that ask ``ready`` and ``status`` for what they show."""

    metrics: Metrics
    ready: Callable[[], tuple[bool, Mapping[str, Any]]]
    status: Callable[[], Mapping[str, Any]]

    def app(self) -> web.Application:
        """Return the application of the admin port."""
        app = web.Application(middlewares=[errors_as_json])
        app.on_response_prepare.append(plain_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answered at all means that the loop turns."""
        return json_response({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, parts = self.ready()
        return json_response({"ready": ready, **parts}, status=200 if ready else 503)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(self.status())
