"""Health on the public port, for platforms that probe the one port that they know.

Anybody may ask, so the answer is the status and one word; the admin port says why. It counts as no request
for a stream, and is answered until the connection's end, in a drain too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.http.paths import route_patterns
from gateway.http.responses import json_response


class HealthSource(Protocol):
    """What knows how a node is."""

    async def liveness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this should go on running, and what speaks against it."""

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it."""


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """The handlers."""

    node: HealthSource

    def add_routes(self, app: web.Application, base_path: str) -> None:
        """Add the paths, below ``base``."""
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
