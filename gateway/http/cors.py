"""CORS: which pages may read which channels, and the preflights that aiohttp-cors answers by these rules.

aiohttp-cors matches exact origins, has one policy per route and sends no ``Vary``. Its router adapter is
the extension point: for each request the adapter below returns a mapping whose ``get(origin)`` applies the
rules of the requested channels. Preflights and their response headers stay the library's.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from aiohttp import hdrs, web
from aiohttp_cors import CorsConfig, ResourceOptions
from aiohttp_cors.abc import AbstractRouterAdapter

from gateway.config.channel_catalog import ChannelCatalog
from gateway.config.model.config import Config
from gateway.config.model.origins import MAX_ORIGIN_CHARS, OriginRules
from gateway.core.errors import Forbidden, GatewayError, TooManyRequests
from gateway.http.request import StreamRequest
from gateway.http.responses import Handler, error_response

CACHED_DECISIONS = 1000
"""Decisions that are cached: the clients of a herd come from a few pages."""

MAX_REPORTED_NAME_CHARS = 40
"""Longest header name or method that an error quotes, in characters."""

MAX_CACHED_CHANNELS, MAX_CACHED_CHARS = 10, MAX_ORIGIN_CHARS
"""Most channels, and most characters of their names and the origin, of a decision that is cached."""

_READ_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)

_PREFLIGHT_HEADERS = (hdrs.ACCESS_CONTROL_REQUEST_METHOD, hdrs.ACCESS_CONTROL_REQUEST_HEADERS)

Scope = tuple[str, ...] | None
"""The channels that a request is about, or `ANY_CHANNEL`."""

ANY_CHANNEL: Scope = None
"""The scope of a request about a stream of any node: pages that may read some channel may send it."""

RecordRefusal = Callable[[StreamRequest, GatewayError], None]
CheckRate = Callable[[StreamRequest], None]
ParseRequest = Callable[[web.Request], StreamRequest]


class CorsPolicy:
    """Decides which pages may read which channels."""

    def __init__(self, config: Config, catalog: ChannelCatalog) -> None:
        self._catalog = catalog
        self.reconfigure(config)

    def reconfigure(self, config: Config) -> None:
        """Apply other rules, to the channels that the catalog declares now."""
        self._default_origins = OriginRules(config.cors.origins)
        self._origins_by_channel = {
            name: OriginRules(channel.cors.origins)
            for name, channel in config.channels.items()
            if channel.cors is not None
        }
        self._cached_refusing_rule = lru_cache(CACHED_DECISIONS)(self._find_refusing_rule)
        self._interned_origins = lru_cache(CACHED_DECISIONS)(lambda origin: origin)
        self.resource_options = ResourceOptions(  # type: ignore[no-untyped-call]  # aiohttp-cors types only some of it
            allow_credentials=config.cors.credentials,
            allow_headers=tuple(config.cors.allow_headers),
            max_age=round(config.cors.max_age),
        )

    def page_origin(self, request: StreamRequest) -> str | None:
        """Return the origin of the page that opens a stream, for the stream to keep; None without one."""
        origin = request.headers.get(hdrs.ORIGIN)
        # One string for all streams of a page. A longer origin is never allowed.
        return origin if origin is None or len(origin) > MAX_ORIGIN_CHARS else self._interned_origins(origin)

    def response_headers(self, request: StreamRequest, scope: Scope) -> dict[str, str]:
        """Return the headers that let the page read the response, and stop caches from sharing it."""
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        origin = _origin_header(request)
        if origin is not None and self.refusing_rule(origin, scope) is None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            if self.resource_options.allow_credentials:
                headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        return headers

    def check_origin(self, request: StreamRequest, scope: Scope) -> None:
        """Reject a page that may not read. Raises Forbidden, which names the rule to change.

        Without this the browser would hide the stream from the page, and reconnect for ever.
        """
        origin = _origin_header(request)
        if origin is not None and (rule := self.refusing_rule(origin, scope)) is not None:
            raise Forbidden(
                f"pages of {origin[:200]!r} may not read this; allow it in {rule}", code="origin_refused"
            )

    def refusing_rule(self, origin: str, scope: Scope) -> str | None:
        """Return the YAML path of a list that does not allow the origin, or None if nothing refuses it.

        All channels of a scope must allow it; of `ANY_CHANNEL`, one. An unknown name is held to the global
        list, so that a page can read its 404.
        """
        names = scope or ()
        is_short = (
            len(names) <= MAX_CACHED_CHANNELS and len(origin) + sum(map(len, names)) <= MAX_CACHED_CHARS
        )
        find = self._cached_refusing_rule if is_short else self._find_refusing_rule
        return find(origin, scope)

    def _find_refusing_rule(self, origin: str, scope: Scope) -> str | None:
        if scope is ANY_CHANNEL:
            lists = (self._default_origins, *self._origins_by_channel.values())
            return None if any(each.allows(origin) for each in lists) else "cors.origins"
        for name in scope or ("",):
            match = self._catalog.resolve(name)
            declared_name = "" if match is None else match.declared.name
            own = self._origins_by_channel.get(declared_name)
            if not (own or self._default_origins).allows(origin):
                return "cors.origins" if own is None else f'channels."{declared_name}".cors.origins'
        return None


def _origin_header(request: StreamRequest) -> str | None:
    """Return the Origin header. Several are joined, which no rule allows: no browser sends them."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin if origin is None else ", ".join(request.headers.getall(hdrs.ORIGIN))


class _RequestOrigins(Mapping[str, ResourceOptions]):
    """The rules of one request as the mapping that aiohttp-cors expects: from an origin to its options."""

    def __init__(self, policy: CorsPolicy, scope: Scope) -> None:
        self._policy = policy
        self._scope = scope

    def __getitem__(self, origin: str) -> ResourceOptions:
        # The library also looks up "*", which is no origin.
        if origin == "*" or self._policy.refusing_rule(origin, self._scope) is not None:
            raise KeyError(origin)
        return self._policy.resource_options

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1  # the library takes an empty mapping for "CORS is off"


class PreflightHandler(AbstractRouterAdapter):
    """Answers the preflights of an application, through aiohttp-cors.

    ``check_rate`` raises TooManyRequests if their client sends too many; ``record_refusal`` gets each
    refusal.
    """

    def __init__(
        self,
        app: web.Application,
        policy: CorsPolicy,
        parse_request: ParseRequest,
        record_refusal: RecordRefusal,
        check_rate: CheckRate,
    ) -> None:
        self._policy = policy
        self._parse_request = parse_request
        self._record_refusal = record_refusal
        self._check_rate = check_rate
        self._methods_by_path: dict[str, tuple[str, ...]] = {}
        self._any_channel_paths: set[str] = set()
        self._library = CorsConfig(app, router_adapter=self)

    def add(self, resource: web.AbstractResource, *methods: str, is_for_any_channel: bool = False) -> None:
        """Answer the preflights of a resource: for ``methods``, by default for reading.

        ``is_for_any_channel``: its requests have the scope `ANY_CHANNEL`.
        """
        if methods:
            self._methods_by_path[resource.canonical] = methods
        if is_for_any_channel:
            self._any_channel_paths.add(resource.canonical)
        self._library.add(resource)

    def add_preflight_handler(self, routing_entity: Any, handler: Handler, webview: bool = False) -> None:
        async def options(request: web.Request) -> web.StreamResponse:
            stream_request = self._parse_request(request)
            try:
                self._check_rate(stream_request)
            except TooManyRequests as error:
                self._record_refusal(stream_request, error)
                response = error_response(error)
                response.force_close()  # a kept connection would go on at that rate
                return response
            if not self.is_preflight_request(request):
                methods = (*self._allowed_methods(request), "OPTIONS")
                return web.Response(status=204, headers={hdrs.ALLOW: ", ".join(methods)})
            try:
                self._policy.check_origin(stream_request, self._scope(request, stream_request))
                return await self._run_library_handler(request, handler)
            except Forbidden as error:  # the browser will send no request that could be recorded
                self._record_refusal(stream_request, error)
                raise

        routing_entity.add_route(hdrs.METH_OPTIONS, options)

    async def _run_library_handler(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except UnicodeEncodeError:  # the library quotes headers that are not UTF-8
            raise Forbidden("the preflight's headers are not UTF-8", code="cors_refused") from None
        except web.HTTPForbidden:
            raise Forbidden(self._refusal_reason(request), code="cors_refused") from None

    def _refusal_reason(self, request: web.Request) -> str:
        method, names = (request.headers.get(name, "") for name in _PREFLIGHT_HEADERS)
        if method not in self._allowed_methods(request):
            shown_method = method if len(method) <= MAX_REPORTED_NAME_CHARS else "that method"
            return f"pages may not use {shown_method} here"
        # A long one is no header name, but perhaps a token.
        shown = [name.strip() for name in names.split(",") if len(name.strip()) <= MAX_REPORTED_NAME_CHARS]
        return (
            f"pages may not send all of these headers: {', '.join(shown)}; allow them in cors.allow_headers"
        )

    def _allowed_methods(self, request: web.Request) -> tuple[str, ...]:
        return self._methods_by_path.get(_resource_path(request), _READ_METHODS)

    def _scope(self, request: web.Request, stream_request: StreamRequest) -> Scope:
        is_for_any = _resource_path(request) in self._any_channel_paths
        return ANY_CHANNEL if is_for_any else stream_request.channels

    def is_preflight_request(self, request: web.Request) -> bool:
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ORIGIN in request.headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        )

    def is_cors_enabled_on_request(self, request: web.Request) -> bool:
        return False  # `CorsPolicy.response_headers` makes them: the fast path needs them too

    def set_config_for_routing_entity(self, routing_entity: Any, config: Any) -> None:
        pass

    async def get_preflight_request_config(
        self, preflight_request: web.Request, origin: str, requested_method: str
    ) -> Mapping[str, ResourceOptions]:
        if requested_method not in self._allowed_methods(preflight_request):
            raise KeyError(requested_method)
        scope = self._scope(preflight_request, self._parse_request(preflight_request))
        return _RequestOrigins(self._policy, scope)

    def get_non_preflight_request_config(self, request: web.Request) -> Mapping[str, ResourceOptions]:
        raise NotImplementedError("the library answers preflights only")


def _resource_path(request: web.Request) -> str:
    """Return the path of the resource as it was declared, with its fields."""
    resource = request.match_info.route.resource
    return request.path if resource is None else resource.canonical
