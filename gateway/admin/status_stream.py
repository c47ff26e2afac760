"""``GET /status/stream``: what `/status` shows, once a second, to whoever looks.

One report serves all viewers, and is made only while there are any. With very many streams or channels it
comes less often, so that it takes little of the loop's time. A viewer that reads slowly gets the newest
report next, so none is kept for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway.core.sse import block, control_block
from gateway.http.request import is_proxied
from gateway.http.routes.subscribe import HEADERS
from gateway.observability.background import UNCOUNTED, Background

SECONDS = 1.0
"""From one report to the next."""

SHARE = 20
"""How many times longer than a report takes the pause after it is, up to `SLOWEST`."""

SLOWEST = 5.0
"""Seconds from one report to the next at the most: the page takes a longer silence for a lost connection."""

MAX_VIEWERS = 20
"""Pages that may look at once."""

RETRY_MS = 2000
"""The reconnect delay told to viewers."""

_json = msgspec.json.Encoder()


class Feed:
    """The viewers, and the task that tells them."""

    def __init__(
        self,
        report: Callable[[], Awaitable[Mapping[str, Any]]],
        *,
        write_seconds: float,
        background: Background = UNCOUNTED,
    ) -> None:
        """Tell what ``report`` returns; a viewer that takes nothing for ``write_seconds`` is cut."""
        self._background = background
        self._report = report
        self._write_seconds = write_seconds
        self._viewers = 0
        self._telling: asyncio.Task[None] | None = None
        self._newest = b""
        self._told = asyncio.Event()  # another one for each report
        self._is_closed = False

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get("/status/stream", self._get, allow_head=False)

    def close(self) -> None:
        """Let every viewer go; harmless when repeated."""
        self._is_closed = True
        self._tell(b"")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=HEADERS)
        if is_proxied(request.headers):
            response.force_close()  # it ends by a drain, and the connection with it
        await response.prepare(request)
        if self._is_closed or self._viewers >= MAX_VIEWERS:
            # 200, as for streams: any other status would end an EventSource for good.
            await response.write(_goodbye("draining" if self._is_closed else "overloaded"))
            return response
        self._viewers += 1
        if self._telling is None:
            self._telling = self._background.start("console", self._run)
        try:
            await self._show(response)
        except ConnectionError:
            pass  # it left
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers -= 1
            if not self._viewers and self._telling is not None:
                self._telling.cancel()
                self._telling = None
        return response

    async def _show(self, response: web.StreamResponse) -> None:
        while not self._is_closed:
            await self._told.wait()
            if self._newest:
                async with asyncio.timeout(self._write_seconds):
                    await response.write(self._newest)
        await response.write(_goodbye("draining"))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                report = await self._report()
                self._tell(block(_json.encode(report), event="status"))
            except Exception as error:
                self._background.failed("console", error)
            await asyncio.sleep(min(max(SECONDS, SHARE * (loop.time() - began)), SLOWEST))

    def _tell(self, newest: bytes) -> None:
        self._newest = newest
        told, self._told = self._told, asyncio.Event()
        told.set()


def _goodbye(reason: str) -> bytes:
    return control_block("stream.close", {"reason": reason, "reconnect": True}, retry=RETRY_MS)
