"""``/healthz`` and ``/readyz``, on the admin port, and on request on the public port too.

Some platforms can probe only one port. Probes of the public port need no token, so the response is only a
status code and one flag. Probes are answered during a drain too, and count in no limit of streams.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.http.responses import json_response


class HealthSource(Protocol):
    """Reports the health of a node, or of the parent of several workers."""

    async def liveness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the node should go on running, and the reasons against it."""

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the node accepts new clients, and the parts that decide it."""


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """Handles health probes. Without ``may_see_details``, the response is a status code and one flag."""

    node: HealthSource
    may_see_details: Callable[[web.Request], bool] = lambda request: False

    def add_routes(self, app: web.Application, patterns: Callable[[str], Iterable[str]]) -> None:
        """Add the routes; ``patterns`` returns those of a path."""
        for path, handler in (("/healthz", self._healthz), ("/readyz", self._readyz)):
            for pattern in patterns(path):
                app.router.add_get(pattern, handler)

    async def _healthz(self, request: web.Request) -> web.Response:
        return self._respond(request, "alive", *await self.node.liveness())

    async def _readyz(self, request: web.Request) -> web.Response:
        return self._respond(request, "ready", *await self.node.readiness())

    def _respond(
        self, request: web.Request, name: str, is_healthy: bool, details: Mapping[str, Any]
    ) -> web.Response:
        shown = details if self.may_see_details(request) else {}
        response = json_response({name: is_healthy, **shown}, status=200 if is_healthy else 503)
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        return response
