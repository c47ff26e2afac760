"""CORS by aiohttp-cors, with decisions of ours.

The library matches exact strings, knows one policy per route and sends no ``Vary``. Its router adapter
is the way out: for each request the adapter below returns a mapping whose ``get(origin)`` asks the
policy of the channels that the request names, so preflights and response headers stay the library's.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from aiohttp import hdrs, web
from aiohttp_cors import CorsConfig, ResourceOptions
from aiohttp_cors.abc import AbstractRouterAdapter

from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch
from gateway.config.model.config import Config
from gateway.config.model.origins import MAX_ORIGIN_CHARS, OriginRules
from gateway.core.errors import Forbidden, GatewayError, TooManyRequests
from gateway.http.request import StreamRequest
from gateway.http.responses import error_response

CACHED_DECISIONS = 1000
"""How many answers of the policy are remembered: the clients of a herd come from a few pages."""

MAX_REPORTED_NAME_CHARS = 40
"""Characters of a header's name, or a method, that is told."""

MAX_CACHED_CHANNELS, MAX_CACHED_CHARS = 10, MAX_ORIGIN_CHARS
"""Channels, and characters of their names and the origin, of a question whose answer is remembered."""

_READ_METHODS = (hdrs.METH_GET, hdrs.METH_HEAD)

_PREFLIGHT_HEADERS = (hdrs.ACCESS_CONTROL_REQUEST_METHOD, hdrs.ACCESS_CONTROL_REQUEST_HEADERS)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RecordRefusal = Callable[[StreamRequest, GatewayError], None]
CheckRate = Callable[[StreamRequest], None]


class CorsPolicy:
    """Who may read what."""

    def __init__(self, config: Config, catalog: ChannelCatalog) -> None:
        self._catalog = catalog
        self.apply(config)

    def apply(self, config: Config) -> None:
        """Decide by a configuration's rules, for the channels that the catalog declares by now."""
        self._default_origins = OriginRules(config.cors.origins)
        self._origins_by_channel = {
            name: OriginRules(channel.cors.origins)
            for name, channel in config.channels.items()
            if channel.cors is not None
        }
        self._cached_refusing_rule = lru_cache(CACHED_DECISIONS)(self._find_refusing_rule)
        self._cached_refusing_rule_any = lru_cache(CACHED_DECISIONS)(self._find_refusing_rule_for_any)
        self._interned_origins = lru_cache(CACHED_DECISIONS)(_identity)
        self.resource_options = ResourceOptions(  # type: ignore[no-untyped-call]  # aiohttp-cors types only some of it
            allow_credentials=config.cors.credentials,
            allow_headers=tuple(config.cors.allow_headers),
            max_age=round(config.cors.max_age),
        )

    def parse_request(self, request: web.Request) -> StreamRequest:
        """Return a request as the policy sees it."""
        return StreamRequest.from_aiohttp_request(request, self._catalog.resolve)

    def page_origin(self, request: StreamRequest) -> str | None:
        """Return the origin of a page that may read, for a stream to keep; None where none asks."""
        origin = request.headers.get(hdrs.ORIGIN)
        # One text for all streams of a page. No longer one is allowed.
        return origin if origin is None or len(origin) > MAX_ORIGIN_CHARS else self._interned_origins(origin)

    def response_headers(self, request: StreamRequest) -> dict[str, str]:
        """Return what lets a page read the answer, and keeps caches from giving it to another one."""
        origin = _origin_header(request)
        return self._build_headers(
            origin, origin is not None and self.refusing_rule(origin, request.channels) is None
        )

    def response_headers_for_any(self, request: StreamRequest) -> dict[str, str]:
        """Return the same for what is about a stream whose channels this node does not know."""
        origin = _origin_header(request)
        return self._build_headers(origin, origin is not None and self.refusing_rule_for_any(origin) is None)

    def check_origin(self, request: StreamRequest) -> None:
        """Refuse a page that may not read. Raises Forbidden, with the rule that stands in the way.

        The browser would refuse to show it the stream, and keep asking for it for ever.
        """
        origin = _origin_header(request)
        if origin is not None:
            _raise_if_refused(origin, self.refusing_rule(origin, request.channels))

    def check_origin_for_any(self, request: StreamRequest) -> None:
        """Refuse a page that may read no channel at all. Raises Forbidden."""
        origin = _origin_header(request)
        if origin is not None:
            _raise_if_refused(origin, self.refusing_rule_for_any(origin))

    def refusing_rule(self, origin: str, names: tuple[str, ...]) -> str | None:
        """Return the YAML path of a list that does not allow the origin, or None if all channels allow it.

        A name that is no channel is held to the global list, so that a page can read its 404.
        """
        is_short = (
            len(names) <= MAX_CACHED_CHANNELS and len(origin) + sum(map(len, names)) <= MAX_CACHED_CHARS
        )
        return (
            self._cached_refusing_rule(origin, names) if is_short else self._find_refusing_rule(origin, names)
        )

    def refusing_rule_for_any(self, origin: str) -> str | None:
        """Return the YAML path where an origin is to be allowed, or None if that is done for some channel."""
        is_short = len(origin) <= MAX_CACHED_CHARS
        return (
            self._cached_refusing_rule_any(origin) if is_short else self._find_refusing_rule_for_any(origin)
        )

    def _build_headers(self, origin: str | None, may_read: bool) -> dict[str, str]:
        headers: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        if origin is not None and may_read:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            if self.resource_options.allow_credentials:
                headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
        return headers

    def _find_refusing_rule_for_any(self, origin: str) -> str | None:
        lists = (self._default_origins, *self._origins_by_channel.values())
        return None if any(each.allows(origin) for each in lists) else "cors.origins"

    def _find_refusing_rule(self, origin: str, names: tuple[str, ...]) -> str | None:
        for name in names or ("",):
            match = self._catalog.resolve(name)
            if not self._origins_of(match).allows(origin):
                own = match is not None and match.declared.name in self._origins_by_channel
                return f'channels."{match.declared.name}".cors.origins' if own and match else "cors.origins"
        return None

    def _origins_of(self, match: ChannelMatch | None) -> OriginRules:
        if match is None:
            return self._default_origins
        return self._origins_by_channel.get(match.declared.name, self._default_origins)


def _identity(origin: str) -> str:
    return origin


def _raise_if_refused(origin: str, rule: str | None) -> None:
    if rule is not None:
        raise Forbidden(
            f"pages of {origin[:200]!r} may not read this; allow it in {rule}", code="origin_refused"
        )


def _origin_header(request: StreamRequest) -> str | None:
    """Return the Origin header; two of them are no page's, and no rule allows what they are together."""
    origin = request.headers.get(hdrs.ORIGIN)
    return origin if origin is None else ", ".join(request.headers.getall(hdrs.ORIGIN))


class _RequestOrigins(Mapping[str, ResourceOptions]):
    """The policy of one request, in the shape that aiohttp-cors asks: origin to options."""

    def __init__(self, options: ResourceOptions, refusing_rule: Callable[[str], str | None]) -> None:
        self._options = options
        self._refusing_rule = refusing_rule

    def __getitem__(self, origin: str) -> ResourceOptions:
        # The library also asks for "*" on its own account; no origin is spelled so.
        if origin == "*" or self._refusing_rule(origin) is not None:
            raise KeyError(origin)
        return self._options

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1  # the library takes an empty mapping for "CORS is off"


class _RouterAdapter(AbstractRouterAdapter):
    def __init__(self, policy: CorsPolicy, record_refusal: RecordRefusal, check_rate: CheckRate) -> None:
        self._policy = policy
        self._record_refusal = record_refusal
        self._check_rate = check_rate
        self._methods_by_path: dict[str, tuple[str, ...]] = {}
        self._any_channel_paths: set[str] = set()

    def allow_methods(self, path: str, *methods: str, is_for_any_channel: bool) -> None:
        """Let pages use these methods on a path, in place of reading."""
        self._methods_by_path[path] = methods
        if is_for_any_channel:
            self._any_channel_paths.add(path)

    def add_preflight_handler(self, routing_entity: Any, handler: Handler, webview: bool = False) -> None:
        async def options(request: web.Request) -> web.StreamResponse:
            ask = self._policy.parse_request(request)
            try:
                self._check_rate(ask)
            except TooManyRequests as error:
                self._record_refusal(ask, error)
                response = error_response(error)
                response.force_close()  # or one connection would go on at the pace that is too fast
                return response
            if self.is_preflight_request(request):
                return await self._preflight(request, ask, handler)
            methods = self._methods_by_path.get(_resource_path(request), _READ_METHODS)
            return web.Response(status=204, headers={hdrs.ALLOW: ", ".join((*methods, "OPTIONS"))})

        routing_entity.add_route(hdrs.METH_OPTIONS, options)

    async def _preflight(
        self, request: web.Request, stream_request: StreamRequest, handler: Handler
    ) -> web.StreamResponse:
        """Let the library answer. Raises Forbidden, after it was noted: the browser sends no request then."""
        try:
            if _resource_path(request) in self._any_channel_paths:
                self._policy.check_origin_for_any(stream_request)
            else:
                self._policy.check_origin(stream_request)
            return await self._run_library_handler(request, handler)
        except Forbidden as error:
            self._record_refusal(stream_request, error)
            raise

    async def _run_library_handler(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except UnicodeEncodeError:  # the library quotes headers, also such as are not UTF-8
            raise Forbidden("the preflight's headers are not UTF-8", code="cors_refused") from None
        except web.HTTPForbidden:
            raise Forbidden(self._refusal_reason(request), code="cors_refused") from None

    def _refusal_reason(self, request: web.Request) -> str:
        method, names = (request.headers.get(name, "") for name in _PREFLIGHT_HEADERS)
        if method not in self._methods_by_path.get(_resource_path(request), _READ_METHODS):
            return f"pages may not use {method if len(method) <= MAX_REPORTED_NAME_CHARS else 'that method'} here"
        # What is long is no name: somebody's token went astray.
        shown = [name.strip() for name in names.split(",") if len(name.strip()) <= MAX_REPORTED_NAME_CHARS]
        return (
            f"pages may not send all of these headers: {', '.join(shown)}; allow them in cors.allow_headers"
        )

    def is_preflight_request(self, request: web.Request) -> bool:
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ORIGIN in request.headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        )

    def is_cors_enabled_on_request(self, request: web.Request) -> bool:
        return False  # the headers of answers are `CorsPolicy.response_headers`: the front protocol needs them too

    def set_config_for_routing_entity(self, routing_entity: Any, config: Any) -> None:
        pass

    async def get_preflight_request_config(
        self, preflight_request: web.Request, origin: str, requested_method: str
    ) -> Mapping[str, ResourceOptions]:
        path, policy = _resource_path(preflight_request), self._policy
        if requested_method not in self._methods_by_path.get(path, _READ_METHODS):
            raise KeyError(requested_method)
        if path in self._any_channel_paths:
            return _RequestOrigins(policy.resource_options, policy.refusing_rule_for_any)
        names = policy.parse_request(preflight_request).channels
        return _RequestOrigins(policy.resource_options, lambda origin: policy.refusing_rule(origin, names))

    def get_non_preflight_request_config(self, request: web.Request) -> Mapping[str, ResourceOptions]:
        raise NotImplementedError("the library answers preflights only")


def _resource_path(request: web.Request) -> str:
    """Return the path of the resource as it was declared, with its fields."""
    resource = request.match_info.route.resource
    return request.path if resource is None else resource.canonical


class PreflightHandler:
    """The preflights of an application, answered by the library."""

    def __init__(
        self, app: web.Application, policy: CorsPolicy, record_refusal: RecordRefusal, check_rate: CheckRate
    ) -> None:
        """``note`` gets each that is refused; ``hurry`` raises TooManyRequests where there are too many."""
        self._adapter = _RouterAdapter(policy, record_refusal, check_rate)
        self._library = CorsConfig(app, router_adapter=self._adapter)

    def add(self, resource: web.AbstractResource, *methods: str, is_for_any_channel: bool = False) -> None:
        """Answer the preflights of a resource: for ``methods``, else for reading.

        ``of_any``: it names no channels, and pages that may read any of them may use it.
        """
        if methods:
            self._adapter.allow_methods(resource.canonical, *methods, is_for_any_channel=is_for_any_channel)
        self._library.add(resource)
