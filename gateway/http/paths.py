"""The paths of the public port, below ``server.base_path``. Repeated slashes are accepted. Pure.

Clients join a base URL and a path, and some write a slash too many; a 404 would end an EventSource for good.
"""

import re

EVENTS_PATH = "/events"
"""The path of streams."""


def route_patterns(base_path: str, path: str) -> tuple[str, str]:
    """Return aiohttp's pattern of a route, and the pattern of the same route with repeated slashes."""
    whole = base_path + path
    pieces = [f"/{{slashes{number}:/*}}{piece}" for number, piece in enumerate(whole.split("/")[1:])]
    return whole, "".join(pieces) + "{slashes:/*}"


def stream_path_pattern(base_path: str) -> re.Pattern[str]:
    """Return the pattern of a stream's path as it was sent. Its one group is the channel's name."""
    segments = "".join(f"/+{re.escape(piece)}" for piece in (base_path + EVENTS_PATH).split("/")[1:])
    return re.compile(rf"{segments}(?:/+([^/]+))?/*")
