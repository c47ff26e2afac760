"""``GET /status/stream``: the report of ``/status`` once a second, as server-sent events.

One report serves all viewers, and is built only while there are any. With very many streams or channels it
comes less often, so that it takes little of the event loop's time. A viewer that reads slowly gets the
newest report next; none is queued for it.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from gateway.core.sse import encode_control_frame, encode_frame
from gateway.http.request import is_proxied
from gateway.http.routes.subscribe import STREAM_HEADERS
from gateway.observability.task_supervisor import UNCOUNTED_SUPERVISOR, TaskSupervisor

REPORT_INTERVAL_SECONDS = 1.0
"""From one report to the next."""

PAUSE_FACTOR = 20
"""The pause after a report, in multiples of the time to build it, up to `MAX_INTERVAL_SECONDS`."""

MAX_INTERVAL_SECONDS = 5.0
"""Longest pause between reports; the page takes a longer silence for a lost connection."""

MAX_VIEWERS = 20
"""Viewers at a time."""

RETRY_MS = 2000
"""The reconnect delay of viewers."""

_json = msgspec.json.Encoder()


class StatusStream:
    """The viewers, and the task that builds the reports."""

    def __init__(
        self,
        report: Callable[[], Awaitable[object]],
        *,
        write_seconds: float,
        background: TaskSupervisor = UNCOUNTED_SUPERVISOR,
    ) -> None:
        """Send what ``report`` returns; a viewer that reads nothing for ``write_seconds`` is disconnected."""
        self._background = background
        self._report = report
        self._write_seconds = write_seconds
        self._viewers = 0
        self._publish_task: asyncio.Task[None] | None = None
        self._newest_block = b""
        self._published = asyncio.Event()  # another one for each report
        self._is_closed = False

    def add_routes(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get("/status/stream", self._get, allow_head=False)

    def close(self) -> None:
        """Close every viewer's stream; harmless when repeated."""
        self._is_closed = True
        self._publish(b"")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=STREAM_HEADERS)
        if is_proxied(request.headers):
            response.force_close()  # a drain ends the stream, and with it the connection
        await response.prepare(request)
        if self._is_closed or self._viewers >= MAX_VIEWERS:
            # 200, as for streams: any other status would end an EventSource for good.
            await response.write(_close_block("draining" if self._is_closed else "overloaded"))
            return response
        self._viewers += 1
        if self._publish_task is None:
            self._publish_task = self._background.start_task("status_stream", self._publish_reports)
        try:
            await self._send_reports(response)
        except ConnectionError:
            pass  # the viewer disconnected
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._viewers -= 1
            if not self._viewers and self._publish_task is not None:
                self._publish_task.cancel()
                self._publish_task = None
        return response

    async def _send_reports(self, response: web.StreamResponse) -> None:
        while not self._is_closed:
            await self._published.wait()
            if self._newest_block:
                async with asyncio.timeout(self._write_seconds):
                    await response.write(self._newest_block)
        await response.write(_close_block("draining"))

    async def _publish_reports(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                report = await self._report()
                self._publish(encode_frame(_json.encode(report), event="status"))
            except Exception as error:
                self._background.record_failure("status_stream", error)
            await asyncio.sleep(
                min(max(REPORT_INTERVAL_SECONDS, PAUSE_FACTOR * (loop.time() - began)), MAX_INTERVAL_SECONDS)
            )

    def _publish(self, newest: bytes) -> None:
        self._newest_block = newest
        published, self._published = self._published, asyncio.Event()
        published.set()


def _close_block(reason: str) -> bytes:
    return encode_control_frame("stream.close", {"reason": reason, "reconnect": True}, retry_ms=RETRY_MS)
