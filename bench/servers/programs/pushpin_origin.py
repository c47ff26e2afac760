"""What pushpin asks for each new stream: it says which channel to hold it on.

usage: python -m bench.servers.programs.pushpin_origin PORT HEARTBEAT_SECONDS
"""

import sys

import uvloop
from aiohttp import web

BACKLOG = 4096


async def _subscribe(request: web.Request) -> web.Response:
    headers = {
        "Content-Type": "text/event-stream",
        "Grip-Hold": "stream",
        "Grip-Channel": request.match_info["channel"],
        "Grip-Keep-Alive": f":\\n; format=cstring; timeout={sys.argv[2]}",
    }
    return web.Response(body=b": hi\n\n", headers=headers)


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/events/{channel}", _subscribe)])
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
