"""A request for a stream, free of the path that it came on: aiohttp's handlers or the front protocol."""

from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from multidict import MultiDict, MultiDictProxy, MultiMapping, istr

from gateway.http.protocol import Protocol
from gateway.limits.limits import UNKNOWN, Caller

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

_FORWARDED = istr("X-Forwarded-For")
_NO_QUERY: MultiMapping[str] = MultiDictProxy(MultiDict())


class Ask(msgspec.Struct, frozen=True):
    """What of a request decides about its stream."""

    method: str
    channels: tuple[str, ...]
    """The names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    query: MultiMapping[str]
    headers: MultiMapping[str]
    chunked: bool
    """Whether the client speaks HTTP/1.1; without it the end of the connection ends the body."""
    caller: Caller
    """Who is at the other end: the client, or a proxy."""
    uri: str
    """Path and query as they were sent."""

    @property
    def forwarded(self) -> str | None:
        """The chain of addresses that proxies wrote."""
        return forwarded(self.headers)

    @classmethod
    def of_request(cls, request: web.Request) -> "Ask":
        """Return what aiohttp routed to a handler."""
        own = request.match_info.get("channel")
        return cls(
            request.method,
            _names(own, request.query),
            request.query,
            request.headers,
            request.version >= (1, 1),
            caller_of(request),
            request.raw_path,
        )

    @classmethod
    def of_message(cls, message: "RawRequestMessage", caller: Caller) -> "Ask | None":
        """Return what aiohttp's parser read, or None where its router should have a look."""
        path = message.url.raw_path
        if path == "/events":
            own = None
        elif path.startswith("/events/") and "%" not in path and "/" not in path[8:] and len(path) > 8:
            own = path[8:]
        else:
            return None
        query = message.url.query if "?" in message.path else _NO_QUERY
        return cls(
            message.method,
            _names(own, query),
            query,
            message.headers,
            message.version >= (1, 1),
            caller,
            message.path,
        )


def caller_of(request: web.Request) -> Caller:
    """Return who is at the other end of a request's connection."""
    protocol = request.protocol
    return protocol.caller if isinstance(protocol, Protocol) else UNKNOWN


def forwarded(headers: MultiMapping[str]) -> str | None:
    """Return the chain of addresses that proxies wrote, all headers together (RFC 9110 §5.3)."""
    return ",".join(headers.getall(_FORWARDED)) if _FORWARDED in headers else None


def _names(own: str | None, query: MultiMapping[str]) -> tuple[str, ...]:
    if not query and own:
        return (own,)
    names = [own] if own else []
    for value in query.getall("channel", ()):
        names.extend(name.strip() for name in value.split(","))
    return tuple(dict.fromkeys(name for name in names if name))
