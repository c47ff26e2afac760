"""Which channels a request names."""

from aiohttp import web


def channel_names(request: web.Request) -> tuple[str, ...]:
    """Return the names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    names = [request.match_info["channel"]] if "channel" in request.match_info else []
    for value in request.query.getall("channel", ()):
        names.extend(name.strip() for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
