"""Health on the public port, for platforms that can probe only that port.

It needs no token, so the response is only a status code and one flag; the admin port has the reasons.
Probes are answered during a drain too, and count in no limit of streams.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.http.paths import route_patterns
from gateway.http.responses import json_response


class HealthSource(Protocol):
    """Reports the health of a node: `gateway.admin.status.NodeStatus`."""

    async def liveness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the node should go on running, and the reasons against it."""

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the node accepts new clients, and the parts that decide it."""


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """Handles health probes."""

    node: HealthSource

    def add_routes(self, app: web.Application, base_path: str) -> None:
        """Add the routes, below ``base_path``."""
        for path, handler in (("/healthz", self._healthz), ("/readyz", self._readyz)):
            for each in route_patterns(base_path, path):
                app.router.add_get(each, handler)

    async def _healthz(self, request: web.Request) -> web.Response:
        alive, _ = await self.node.liveness()
        return _health_response("alive", alive)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, _ = await self.node.readiness()
        return _health_response("ready", ready)


def _health_response(name: str, is_healthy: bool) -> web.Response:
    response = json_response({name: is_healthy}, status=200 if is_healthy else 503)
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    return response
