"""The try-it panel of a gateway with several workers: the parent forwards its requests to one of them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import aiohttp
from aiohttp import hdrs, web

from gateway.admin.try_panel import TRY_PATH
from gateway.core.errors import Unavailable
from gateway.http.request import is_proxied
from gateway.http.routes.subscribe import STREAM_HEADERS

CONNECT_SECONDS = 2.0
"""How long a worker may take to answer at all."""


class TryPanelRelay:
    """The handlers. ``socket_paths`` returns those of the workers that listen."""

    def __init__(self, socket_paths: Callable[[], Iterable[Path]], *, idle_seconds: float) -> None:
        """A worker that sends nothing for ``idle_seconds`` counts as dead; heartbeats must come sooner."""
        self._socket_paths = socket_paths
        self._idle_seconds = idle_seconds

    def add_routes(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(TRY_PATH, self._forward, allow_head=False)
        app.router.add_post(TRY_PATH, self._forward)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {hdrs.CONTENT_TYPE: request.headers.get(hdrs.CONTENT_TYPE, "")}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=self._idle_seconds
        )
        for socket in self._socket_paths():
            connector = aiohttp.UnixConnector(str(socket))
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                try:
                    answer = await session.request(
                        request.method,
                        f"http://worker{TRY_PATH}",
                        params=request.query,
                        data=body,
                        headers=headers,
                    )
                except aiohttp.ClientConnectorError:
                    continue  # it died before it got the request, so another worker may get it
                except (aiohttp.ClientError, TimeoutError, OSError):
                    raise Unavailable("the worker did not answer") from None
                if answer.status != 200 or request.method == hdrs.METH_POST:
                    return web.Response(
                        body=await answer.read(), status=answer.status, content_type=answer.content_type
                    )
                return await self._forward_stream(request, answer)
        raise Unavailable("no worker answered")

    async def _forward_stream(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM_HEADERS)
        if is_proxied(request.headers):
            response.force_close()  # a drain ends the stream, and with it the connection
        await response.prepare(request)
        try:
            async for data in answer.content.iter_any():
                await response.write(data)
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # one of the two disconnected; the page reconnects
        return response
