"""The admin port: metrics, health, status; `gateway.admin.page` adds the console."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import hdrs, web

from gateway.admin.guard import Guard
from gateway.admin.status import Outcome
from gateway.core.errors import BadRequest, NotFound
from gateway.http.responses import errors_as_json, json_response, plain_headers
from gateway.observability.metrics import CONTENT_TYPE, Family, in_turns, parts

HEADERS: Mapping[str, str] = {
    hdrs.CACHE_CONTROL: "no-store",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of every answer of the port but the console's own. No page may hold it or load it."""


class Answers(Protocol):
    """What is told on the admin port: by a node, or by the parent of several."""

    async def families(self) -> Sequence[Family]:
        """Return the metrics."""

    async def alive(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this should go on running, and what speaks against it."""

    async def ready(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether new clients should come here, and the parts that decide it."""

    def knows(self, channel: str) -> bool:
        """Tell whether a name is a channel's, or that of a template."""

    async def end(self, subject: str | None, channel: str | None) -> Mapping[str, Any]:
        """End streams on every node. Raises Unavailable."""

    async def reload(self) -> Outcome:
        """Read the configuration's file again. Raises NotFound where there is none."""

    async def report(self) -> Mapping[str, Any]:
        """Return what ``/status`` shows."""


class More(Protocol):
    """Routes of the port that others answer."""

    def add_to(self, app: web.Application) -> None:
        """Add them."""


@dataclass(frozen=True, slots=True)
class Admin:
    """The handlers. Without a guard they are those of a worker's own socket, where only its parent asks."""

    answers: Answers
    guard: Guard | None = None
    more: Sequence[More] = ()

    def app(self) -> web.Application:
        """Return the application of the admin port; a worker's parent asks for more."""
        app = web.Application(middlewares=[errors_as_json])
        if self.guard is not None:
            app.middlewares.append(self.guard.middleware)
        app.on_response_prepare.append(plain_headers)
        app.on_response_prepare.append(_admin_headers)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        app.router.add_delete("/streams", self._end)
        app.router.add_post("/reload", self._reload)
        if self.guard is None:
            app.router.add_get("/families", self._families)
        for each in self.more:
            each.add_to(app)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        body = b"".join(await in_turns(parts(await self.answers.families())))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _families(self, request: web.Request) -> web.Response:
        return json_response(await self.answers.families())

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answered at all means that the loop turns."""
        alive, parts = await self.answers.alive()
        told = parts if self._trusts(request) else {}
        return json_response({"alive": alive, **told}, status=200 if alive else 503)

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, parts = await self.answers.ready()
        told = parts if self._trusts(request) else {}
        return json_response({"ready": ready, **told}, status=200 if ready else 503)

    async def _end(self, request: web.Request) -> web.Response:
        given = [request.query.getall(name, []) for name in ("subject", "channel")]
        if max(map(len, given)) > 1:
            raise BadRequest("one subject and one channel at a time", code="bad_query")
        subject, channel = ((values or [""])[0] or None for values in given)
        if subject is None and channel is None:
            raise BadRequest("say whose: ?subject=…, ?channel=…, or both", code="bad_query")
        if channel is not None and not self.answers.knows(channel):
            raise NotFound("there is no such channel", code="unknown_channel")
        return json_response(await self.answers.end(subject, channel), status=202)

    async def _reload(self, request: web.Request) -> web.Response:
        outcome = await self.answers.reload()
        return json_response(outcome, status=422 if outcome.result == "failed" else 200)

    async def _status(self, request: web.Request) -> web.Response:
        return json_response(await self.answers.report())

    def _trusts(self, request: web.Request) -> bool:
        return self.guard is None or self.guard.trusts(request)


async def _admin_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)  # a handler may know better
