"""The public application: which path leads to which handler."""

from aiohttp import web

from gateway.http.cors import Cors, CorsPolicy
from gateway.http.hooks import Hooks
from gateway.http.responses import errors_as_json, plain_headers
from gateway.http.subscribe import Subscribe


def public_app(subscribe: Subscribe, hooks: Hooks, app: web.Application, cors: Cors) -> web.Application:
    """Add the public routes to ``app``."""
    for path in ("/events/{channel}", "/events"):
        resource = app.router.add_resource(path)
        resource.add_route("GET", subscribe.get)
        resource.add_route("HEAD", subscribe.get)
        cors.add(resource)
    hook = app.router.add_resource("/hooks/{source}")
    hook.add_route("POST", hooks.post, expect_handler=hooks.expect)
    hook.add_route("HEAD", hooks.head)
    hook.add_route("OPTIONS", hooks.options)
    return app


def bare_app(policy: CorsPolicy) -> tuple[web.Application, Cors]:
    """Return an application with error handling, and the CORS that its routes will use."""
    app = web.Application(middlewares=[errors_as_json])
    cors = Cors(app, policy)
    # After the library's hook, which asserts that nobody touched the CORS headers before it.
    app.on_response_prepare.append(plain_headers)
    return app, cors
