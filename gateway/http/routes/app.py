"""The routes of the public port."""

from collections.abc import Mapping

from aiohttp import web

from gateway.http.cors import PreflightHandler
from gateway.http.paths import EVENTS_PATH, route_patterns
from gateway.http.responses import add_common_headers, errors_as_json
from gateway.http.routes import client
from gateway.http.routes.acks import ACK_PATH, AckHandler
from gateway.http.routes.health import HealthHandler
from gateway.http.routes.hooks import WebhookHandler
from gateway.http.routes.subscribe import SubscribeHandler
from gateway.http.routes.tickets import TICKETS_PATH, TicketHandler
from gateway.webhooks.formats.base import PostPath

HOOK_PATHS: Mapping[str, PostPath] = {
    "/hooks/{source}": "plain",
    "/hooks/{source}/topics/{topic}": "topics",
    "/hooks/{source}/topics/{topic}/partitions/{partition:[0-9]{1,9}}": "topics",
    "/hooks/{source}/v3/clusters/{cluster}/topics/{topic}/records": "records",
    "/hooks/{source}/v3/clusters/{cluster}/topics/{topic}/records:batch": "records:batch",
    "/hooks/{source}/{topic}/messages": "messages",
}
"""The paths of webhooks: a source's own, those of REST Proxy v2 and v3, and of Event Hubs."""


def build_public_app(
    subscribe_handler: SubscribeHandler,
    hooks: WebhookHandler,
    tickets: TicketHandler,
    acks: AckHandler,
    base_path: str = "",
    health: HealthHandler | None = None,
) -> web.Application:
    """Return the application of the public port, below ``base_path``; with ``health``, also for probes."""
    app = web.Application(middlewares=[hooks.refusals.middleware, errors_as_json])
    preflights = PreflightHandler(
        app,
        subscribe_handler.cors,
        subscribe_handler.parser.from_aiohttp,
        subscribe_handler.record_refusal,
        subscribe_handler.check_preflight_rate,
    )
    # After the library's hook, which asserts that no CORS header is set before it.
    app.on_response_prepare.append(add_common_headers)
    for path in (*route_patterns(base_path, "/events/{channel}"), *route_patterns(base_path, EVENTS_PATH)):
        resource = app.router.add_resource(path)
        resource.add_route("GET", subscribe_handler.get)
        resource.add_route("HEAD", subscribe_handler.get)
        preflights.add(resource)
    for path in route_patterns(base_path, TICKETS_PATH):
        resource = app.router.add_resource(path)
        resource.add_route("POST", tickets.post)
        preflights.add(resource, "POST")
    for path in route_patterns(base_path, ACK_PATH):
        resource = app.router.add_resource(path)
        resource.add_route("POST", acks.post)
        preflights.add(resource, "POST", is_for_any_channel=True)
    for path in (
        *route_patterns(base_path, client.CLIENT_PATH),
        *route_patterns(base_path, client.VERSIONED_CLIENT_PATH),
    ):
        resource = app.router.add_resource(path)
        resource.add_route("GET", client.serve_script)
        resource.add_route("HEAD", client.serve_script)
    if health is not None:
        health.add_routes(app, base_path)
    for url, kind in HOOK_PATHS.items():
        resource = app.router.add_resource(base_path + url)
        resource.add_route("POST", hooks.post_handler(kind), expect_handler=hooks.expect_handler(kind))
        resource.add_route("HEAD", hooks.head)
        resource.add_route("OPTIONS", hooks.options)
    return app
