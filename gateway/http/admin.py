"""The admin port: metrics, health, status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from gateway.errors import BadRequest
from gateway.http.responses import errors_as_json, json_response, plain_headers
from gateway.metrics import CONTENT_TYPE, Family, render


class Answers(Protocol):
    """What is told on the admin port: by a node, or by the parent of several."""

    async def families(self) -> Sequence[Family]:
        """Return the metrics."""

    async def alive(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this should go on running, and what speaks against it."""

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it."""

    async def end(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""

    async def report(self) -> Mapping[str, Any]:
        """Return what ``/status`` shows."""


@dataclass(frozen=True, slots=True)
class Admin:
    """The handlers."""

    answers: Answers

    def app(self, *, for_parent: bool = False) -> web.Application:
        """Return the application of the admin port; a worker's parent asks for more."""
        app = web.Application(middlewares=[errors_as_json])
        app.on_response_prepare.append(plain_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        app.router.add_delete("/streams", self._end)
        if for_parent:
            app.router.add_get("/families", self._families)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=render(await self.answers.families()), headers={"Content-Type": CONTENT_TYPE}
        )

    async def _families(self, request: web.Request) -> web.Response:
        return json_response(await self.answers.families())

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answered at all means that the loop turns."""
        alive, parts = await self.answers.alive()
        return json_response({"alive": alive, **parts}, status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, parts = await self.answers.ready()
        return json_response({"ready": ready, **parts}, status=200 if ready else 503)

    async def _end(self, request: web.Request) -> web.Response:
        subject, channel = request.query.get("subject"), request.query.get("channel")
        if not subject and not channel:
            raise BadRequest("say whose: ?subject=…, ?channel=…, or both", code="bad_query")
        return json_response(await self.answers.end(subject or None, channel or None), status=202)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(await self.answers.report())
