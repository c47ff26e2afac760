"""aiohttp-sse on uvloop, written the usual way: a queue per client.

usage: python -m bench.servers.programs.aiohttp_sse PORT HEARTBEAT_SECONDS
"""

import asyncio
import itertools
import resource
import sys
from collections import defaultdict

import uvloop
from aiohttp import web
from aiohttp_sse import sse_response

BACKLOG = 4096
_queues: defaultdict[str, set[asyncio.Queue[tuple[str, str]]]] = defaultdict(set)
_ids = itertools.count(1)


async def _subscribe(request: web.Request) -> web.StreamResponse:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(1000)
    queues = _queues[request.match_info["channel"]]
    async with sse_response(request, ping_interval=float(sys.argv[2])) as response:
        queues.add(queue)
        try:
            await response.write(b": hi\r\n\r\n")
            while True:
                id, data = await queue.get()
                await response.send(data, id=id)
        finally:
            queues.discard(queue)
    return response


async def _publish(request: web.Request) -> web.Response:
    for line in (await request.text()).splitlines():
        event = str(next(_ids)), line
        for queue in _queues[request.match_info["channel"]]:
            if not queue.full():
                queue.put_nowait(event)
    return web.json_response({})


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    app = web.Application(client_max_size=2**24)
    app.add_routes([web.get("/events/{channel}", _subscribe), web.post("/publish/{channel}", _publish)])
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=BACKLOG,
        access_log=None,
        print=None,
        shutdown_timeout=1,
        loop=uvloop.new_event_loop(),
    )
