"""Where the public port's routes are: below ``server.base_path``, with as many slashes as a client writes.

Clients join a base URL and a path, and some write a slash too many. A 404 would end an EventSource for good.
Pure.
"""

import re

EVENTS_PATH = "/events"
"""Of `gateway.http.routes.subscribe`."""


def route_patterns(base_path: str, path: str) -> tuple[str, str]:
    """Return a route as aiohttp writes it, and one for the same with slashes too many."""
    whole = base_path + path
    pieces = [f"/{{slashes{number}:/*}}{piece}" for number, piece in enumerate(whole.split("/")[1:])]
    return whole, "".join(pieces) + "{slashes:/*}"


def stream_path_pattern(base_path: str) -> re.Pattern[str]:
    """Return what matches the path of a stream as it was sent; its one group is the channel's name."""
    segments = "".join(f"/+{re.escape(piece)}" for piece in (base_path + EVENTS_PATH).split("/")[1:])
    return re.compile(rf"{segments}(?:/+([^/]+))?/*")
