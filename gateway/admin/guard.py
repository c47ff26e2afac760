"""Who may ask on the admin port: no page of somebody else, and nobody without the token where there is one.

A page in the browser of somebody who can reach the port could ask in their name. Two ways are open to it: to
ask from its own origin (the browser then says so, in ``Origin`` or ``Sec-Fetch-Site``), or to give its own
name our address (DNS rebinding; the name then stands in ``Host``). Nobody on the internet has a name of a
single label, so those are safe.
"""

import re
from dataclasses import dataclass, field
from hmac import compare_digest

import structlog
from aiohttp import hdrs, web

from gateway.config.model.config import ServerConfig
from gateway.config.model.origins import CROSS_ORIGIN_FETCH_SITES
from gateway.config.model.value_types import UnixSocketPath, is_ip
from gateway.core.errors import Forbidden, GatewayError, Unauthorized
from gateway.http.refusal_log import RefusalLog
from gateway.http.responses import Handler
from gateway.observability.recent_errors import RecentErrors

log = structlog.get_logger("gateway.http")

PROBE_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths whose status is told without a token: a kubelet has none."""

CONSOLE_PATH = "/"
"""The path of the console, which asks for the token itself; without one it holds no figure."""

_SINGLE_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?")
_HOST_HEADER = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:[0-9]*)?")


@dataclass(slots=True)
class AdminGuard:
    """The rules of one port. ``hosts`` are its names; ``is_private`` says that it listens on loopback."""

    allowed_hosts: frozenset[str]
    is_loopback: bool
    token: bytes | None = field(repr=False)
    refusal_log: RefusalLog = field(repr=False)

    @classmethod
    def from_config(cls, server: ServerConfig, recent_errors: RecentErrors) -> "AdminGuard":
        """Return the guard of ``server.admin``."""
        token = server.admin_token
        own = "localhost" if isinstance(server.admin, UnixSocketPath) else server.admin.host.lower()
        return cls(
            frozenset({"localhost", own, *server.admin_hosts}),
            server.admin.is_loopback,
            None if token is None else token.get_secret_value().encode(),
            RefusalLog("admin", recent_errors),
        )

    def reconfigure(self, server: ServerConfig) -> None:
        """Require another token, or none, and take other names; the address stays."""
        other = AdminGuard.from_config(server, RecentErrors())
        self.token, self.allowed_hosts = other.token, other.allowed_hosts

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse, or hand on."""
        try:
            self._check_host(request)
            self._check_origin(request)
            self._check_token(request)
        except GatewayError as error:
            times = self.refusal_log.record(error, request.remote, client=request.remote)
            if times is not None:
                log.info("admin_refused", code=error.code, client=request.remote, times=times)
            raise
        return await handler(request)

    def is_authorized(self, request: web.Request) -> bool:
        """Tell whether who asks has the token, or needs none."""
        if self.token is None:
            return True
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        # Bytes that are no UTF-8 arrive as surrogates.
        return compare_digest(given.strip().encode(errors="surrogateescape"), self.token) and (
            scheme.lower() == "bearer"
        )

    def _check_host(self, request: web.Request) -> None:
        """Refuse names that somebody else's DNS may have led here. Browsers never leave Host out."""
        host = request.headers.get(hdrs.HOST)
        if host is None or (self.token is not None and not self.is_loopback):
            return
        parts = _HOST_HEADER.fullmatch(host)
        name = parts[1].strip("[]").lower() if parts else ""
        if name not in self.allowed_hosts and not is_ip(name) and not _SINGLE_LABEL.fullmatch(name):
            raise Forbidden(
                "Host must be an IP address, localhost, a name without a dot, or one of server.admin_hosts",
                code="host_refused",
            )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        is_foreign = origin is not None and origin.partition("://")[2] != request.headers.get(hdrs.HOST, "")
        # A link may lead here: it shows the answer to its reader, and to no page.
        is_link = (
            request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
            and request.headers.get("Sec-Fetch-Mode") == "navigate"
        )
        is_elsewhere = request.headers.get("Sec-Fetch-Site") in CROSS_ORIGIN_FETCH_SITES
        if is_foreign or (is_elsewhere and not is_link):
            raise Forbidden("pages of other origins may not ask here", code="cross_origin")

    def _check_token(self, request: web.Request) -> None:
        is_page = request.path == CONSOLE_PATH and request.method in (hdrs.METH_GET, hdrs.METH_HEAD)
        if is_page or request.path in PROBE_PATHS or self.is_authorized(request):
            return
        if hdrs.AUTHORIZATION not in request.headers:
            raise Unauthorized(
                "this needs Authorization: Bearer, with server.admin_token", code="missing_token"
            )
        raise Unauthorized(
            "this is not the token of server.admin_token",
            code="invalid_token",
            challenge='Bearer error="invalid_token"',
        )
