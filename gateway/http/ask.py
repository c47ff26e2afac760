"""A request for a stream, free of the path that it came on: aiohttp's handlers or the front protocol."""

from collections.abc import Mapping

import msgspec
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from multidict import MultiMapping


class Ask(msgspec.Struct, frozen=True):
    """What of a request decides about its stream."""

    method: str
    path: str
    channels: tuple[str, ...]
    """The names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    query: MultiMapping[str]
    headers: Mapping[str, str]
    chunked: bool
    """Whether the client speaks HTTP/1.1; without it the end of the connection ends the body."""
    client: str | None
    """The address of the peer."""

    @classmethod
    def of_request(cls, request: web.Request) -> "Ask":
        """Return what aiohttp routed to a handler."""
        own = request.match_info.get("channel")
        return cls(
            request.method,
            request.path,
            _names(own, request.query),
            request.query,
            request.headers,
            request.version >= (1, 1),
            request.remote,
        )

    @classmethod
    def of_message(cls, message: RawRequestMessage, client: str | None) -> "Ask | None":
        """Return what aiohttp's parser read, or None where its router should have a look."""
        path = message.url.raw_path
        if path == "/events":
            own = None
        elif path.startswith("/events/") and "%" not in path and "/" not in path[8:] and len(path) > 8:
            own = path[8:]
        else:
            return None
        query = message.url.query
        return cls(
            message.method,
            path,
            _names(own, query),
            query,
            message.headers,
            message.version >= (1, 1),
            client,
        )


def _names(own: str | None, query: MultiMapping[str]) -> tuple[str, ...]:
    if not query and own:
        return (own,)
    names = [own] if own else []
    for value in query.getall("channel", ()):
        names.extend(name.strip() for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
