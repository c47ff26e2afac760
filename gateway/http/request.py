"""A request for a stream, free of the path that it came on: aiohttp's handlers or the front protocol."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import MultiDict, MultiDictProxy, MultiMapping, istr

from gateway.config.model.auth import OWN_QUERY, usual
from gateway.http.protocol import Protocol
from gateway.streams.quotas.limits import UNKNOWN, Caller

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

Resolve = Callable[[str], object]
"""Finds the channel of a name; None where there is none."""

_FORWARDED = istr("X-Forwarded-For")
_OF_PROXIES = (_FORWARDED, istr("Forwarded"), istr("Via"), istr("X-Real-IP"))
_NO_QUERY: MultiMapping[str] = MultiDictProxy(MultiDict())


class Ask(msgspec.Struct, frozen=True):
    """What of a request decides about its stream."""

    method: str
    channels: tuple[str, ...]
    """The names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    query: MultiMapping[str]
    """With the gateway's own names as it spells them, in whatever case they were sent."""
    headers: MultiMapping[str]
    chunked: bool
    """Whether the client speaks HTTP/1.1; without it the end of the connection ends the body."""
    caller: Caller
    """Who is at the other end: the client, or a proxy."""
    uri: str
    """Path and query as they were sent."""

    @property
    def unknown(self) -> list[str]:
        """Query names that are none of the gateway's own. One without a value may be a lost token."""
        if OWN_QUERY.issuperset(self.query):
            return []
        return [name for name, value in self.query.items() if value and name not in OWN_QUERY]

    @property
    def forwarded(self) -> str | None:
        """The chain of addresses that proxies wrote."""
        return forwarded(self.headers)

    @property
    def is_proxied(self) -> bool:
        """Whether a proxy sent the request."""
        return is_proxied(self.headers)

    @classmethod
    def of_request(cls, request: web.Request, resolve: Resolve) -> "Ask":
        """Return what aiohttp routed to a handler."""
        own = None
        if "channel" in request.match_info:
            own = _unquoted(request.rel_url.raw_path.rstrip("/").rpartition("/")[2])
        query = _spelled(request.query)
        return cls(
            request.method,
            _names(own, query, resolve),
            query,
            request.headers,
            request.version >= (1, 1),
            caller_of(request),
            request.raw_path,
        )

    @classmethod
    def of_message(
        cls, message: "RawRequestMessage", caller: Caller, resolve: Resolve, path: re.Pattern[str]
    ) -> "Ask | None":
        """Return what aiohttp's parser read, or None where its router should have a look.

        ``path`` is that of streams, see `gateway.http.paths.stream_path`.
        """
        found = path.fullmatch(message.url.raw_path)
        if found is None:
            return None
        own = found[1] and _unquoted(found[1])
        query = _spelled(message.url.query) if "?" in message.path else _NO_QUERY
        return cls(
            message.method,
            _names(own, query, resolve),
            query,
            message.headers,
            message.version >= (1, 1),
            caller,
            message.path,
        )


def _spelled(query: MultiMapping[str]) -> MultiMapping[str]:
    """Return a query with the gateway's own names as it spells them. The usual one is not copied."""
    if OWN_QUERY.issuperset(query) or all(usual(name) == name for name in query):
        return query
    return MultiDictProxy(MultiDict([(usual(name), value) for name, value in query.items()]))


def caller_of(request: web.Request) -> Caller:
    """Return who is at the other end of a request's connection."""
    protocol = request.protocol
    return protocol.caller if isinstance(protocol, Protocol) else UNKNOWN


def forwarded(headers: MultiMapping[str]) -> str | None:
    """Return the chain of addresses that proxies wrote, all headers together (RFC 9110 §5.3)."""
    return ",".join(headers.getall(_FORWARDED)) if _FORWARDED in headers else None


def _unquoted(segment: str) -> str:
    """Return what a segment of a path spells (RFC 3986); what is no UTF-8 as U+FFFD, which no name has."""
    return unquote(segment) if "%" in segment else segment


def is_proxied(headers: MultiMapping[str]) -> bool:
    """Tell whether headers come from a proxy: from any of those that one may write about the client."""
    return any(name in headers for name in _OF_PROXIES)


def _names(own: str | None, query: MultiMapping[str], resolve: Resolve) -> tuple[str, ...]:
    if not query and own:
        return (own,)
    names = [own] if own else []
    for value in query.getall("channel", ()):
        if "," not in value:
            names.append(value)
            continue
        parts = [name for part in value.split(",") if (name := part.strip())]
        # A comma separates channels, unless there is no such channel and the whole is one.
        is_one = resolve(value) is not None and any(resolve(part) is None for part in parts)
        names.extend([value] if is_one else parts)
    return tuple(dict.fromkeys(name for name in names if name))
