"""sse-starlette on uvicorn, written the usual way: a queue per client.

usage: python -m bench.servers.programs.sse_starlette PORT HEARTBEAT_SECONDS
"""

import asyncio
import itertools
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

BACKLOG = 4096
_queues: defaultdict[str, set[asyncio.Queue[tuple[str, str]]]] = defaultdict(set)
_ids = itertools.count(1)


async def _events(channel: str) -> AsyncIterator[ServerSentEvent]:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(1000)
    _queues[channel].add(queue)
    try:
        yield ServerSentEvent(comment="hi")
        while True:
            id, data = await queue.get()
            yield ServerSentEvent(data, id=id)
    finally:
        _queues[channel].discard(queue)


async def _subscribe(request: Request) -> Response:
    return EventSourceResponse(_events(request.path_params["channel"]), ping=float(sys.argv[2]))


async def _publish(request: Request) -> Response:
    for line in (await request.body()).decode().splitlines():
        event = str(next(_ids)), line
        for queue in _queues[request.path_params["channel"]]:
            if not queue.full():
                queue.put_nowait(event)
    return JSONResponse({})


APP = Starlette(
    routes=[
        Route("/events/{channel}", _subscribe),
        Route("/publish/{channel}", _publish, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(
        APP,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=3600,  # of the posting connection
        timeout_graceful_shutdown=1,
    )
