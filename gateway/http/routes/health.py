"""Health on the public port, for platforms that probe the one port that they know.

Anybody may ask, so the answer is the status and one word; the admin port says why. It counts as no request
for a stream, and is answered until the connection's end, in a drain too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.http.paths import spellings
from gateway.http.responses import json_response


class Healthy(Protocol):
    """What knows how a node is."""

    async def alive(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this should go on running, and what speaks against it."""

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it."""


@dataclass(frozen=True, slots=True)
class Health:
    """The handlers."""

    node: Healthy

    def add_to(self, app: web.Application, base: str) -> None:
        """Add the paths, below ``base``."""
        for path, handler in (("/healthz", self._healthz), ("/readyz", self._readyz)):
            for each in spellings(base, path):
                app.router.add_get(each, handler)

    async def _healthz(self, request: web.Request) -> web.Response:
        alive, _ = await self.node.alive()
        return _answer("alive", alive)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, _ = await self.node.ready()
        return _answer("ready", ready)


def _answer(word: str, is_so: bool) -> web.Response:
    response = json_response({word: is_so}, status=200 if is_so else 503)
    response.headers[hdrs.CACHE_CONTROL] = "no-store"
    return response
