"""The public application: which path leads to which handler."""

from collections.abc import Mapping

from aiohttp import web

from gateway.http.cors import CorsPolicy, Preflights
from gateway.http.paths import STREAMS, spellings
from gateway.http.responses import errors_as_json, plain_headers
from gateway.http.routes import client
from gateway.http.routes.acks import PATH as ACK
from gateway.http.routes.acks import Acknowledge
from gateway.http.routes.health import Health
from gateway.http.routes.hooks import Hooks
from gateway.http.routes.subscribe import Subscribe
from gateway.http.routes.tickets import PATH as TICKETS
from gateway.http.routes.tickets import TicketOffice
from gateway.webhooks.formats.base import Path

HOOKS: Mapping[str, Path] = {
    "/hooks/{source}": "plain",
    "/hooks/{source}/topics/{topic}": "topics",
    "/hooks/{source}/topics/{topic}/partitions/{partition:[0-9]{1,9}}": "topics",
    "/hooks/{source}/v3/clusters/{cluster}/topics/{topic}/records": "records",
    "/hooks/{source}/v3/clusters/{cluster}/topics/{topic}/records:batch": "records:batch",
    "/hooks/{source}/{topic}/messages": "messages",
}
"""A source's own path, REST Proxy's v2 and v3, and Event Hubs'."""


def public_app(
    subscribe: Subscribe,
    hooks: Hooks,
    policy: CorsPolicy,
    tickets: TicketOffice,
    acknowledge: Acknowledge,
    base: str = "",
    health: Health | None = None,
) -> web.Application:
    """Return the application of the public port, all of it below ``base``; with ``health`` for its probes."""
    app = web.Application(middlewares=[hooks.refusals.trace, errors_as_json])
    preflights = Preflights(app, policy, subscribe.note_refusal, subscribe.hurry_preflight)
    # After the library's hook, which asserts that nobody touched the CORS headers before it.
    app.on_response_prepare.append(plain_headers)
    for path in (*spellings(base, "/events/{channel}"), *spellings(base, STREAMS)):
        resource = app.router.add_resource(path)
        resource.add_route("GET", subscribe.get)
        resource.add_route("HEAD", subscribe.get)
        preflights.add(resource)
    for path in spellings(base, TICKETS):
        office = app.router.add_resource(path)
        office.add_route("POST", tickets.post)
        preflights.add(office, "POST")
    for path in spellings(base, ACK):
        ack = app.router.add_resource(path)
        ack.add_route("POST", acknowledge.post)
        preflights.add(ack, "POST", of_any=True)
    for path in (*spellings(base, client.PATH), *spellings(base, client.VERSIONED)):
        module = app.router.add_resource(path)
        module.add_route("GET", client.get)
        module.add_route("HEAD", client.get)
    if health is not None:
        health.add_to(app, base)
    for url, kind in HOOKS.items():
        hook = app.router.add_resource(base + url)
        hook.add_route("POST", hooks.post(kind), expect_handler=hooks.expect(kind))
        hook.add_route("HEAD", hooks.head)
        hook.add_route("OPTIONS", hooks.options)
    return app
