"""A request for a stream, free of the path that it came on: aiohttp's handlers or the front protocol."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import MultiDict, MultiDictProxy, MultiMapping, istr

from gateway.config.model.auth import RESERVED_QUERY_NAMES, canonical_query_name
from gateway.http.aiohttp_protocol import AiohttpProtocol
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, Caller

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

ResolveChannel = Callable[[str], object]
"""Finds the channel of a name; None where there is none."""

_X_FORWARDED_FOR = istr("X-Forwarded-For")
_PROXY_HEADERS = (_X_FORWARDED_FOR, istr("Forwarded"), istr("Via"), istr("X-Real-IP"))
_EMPTY_QUERY: MultiMapping[str] = MultiDictProxy(MultiDict())


class StreamRequest(msgspec.Struct, frozen=True):
    """What of a request decides about its stream."""

    method: str
    channels: tuple[str, ...]
    """The names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    query: MultiMapping[str]
    """With the gateway's own names as it spells them, in whatever case they were sent."""
    headers: MultiMapping[str]
    is_chunked: bool
    """Whether the client speaks HTTP/1.1; without it the end of the connection ends the body."""
    caller: Caller
    """Who is at the other end: the client, or a proxy."""
    uri: str
    """Path and query as they were sent."""

    @property
    def unknown_query_names(self) -> list[str]:
        """Query names that are none of the gateway's own. One without a value may be a lost token."""
        if RESERVED_QUERY_NAMES.issuperset(self.query):
            return []
        return [name for name, value in self.query.items() if value and name not in RESERVED_QUERY_NAMES]

    @property
    def forwarded_for(self) -> str | None:
        """The chain of addresses that proxies wrote."""
        return forwarded_for(self.headers)

    @property
    def is_proxied(self) -> bool:
        """Whether a proxy sent the request."""
        return is_proxied(self.headers)

    @classmethod
    def from_aiohttp_request(cls, request: web.Request, resolve: ResolveChannel) -> "StreamRequest":
        """Return what aiohttp routed to a handler."""
        own = None
        if "channel" in request.match_info:
            own = _decode_segment(request.rel_url.raw_path.rstrip("/").rpartition("/")[2])
        query = _normalize_query_names(request.query)
        return cls(
            request.method,
            _channel_names(own, query, resolve),
            query,
            request.headers,
            request.version >= (1, 1),
            caller_of(request),
            request.raw_path,
        )

    @classmethod
    def from_parsed_message(
        cls,
        message: "RawRequestMessage",
        caller: Caller,
        resolve: ResolveChannel,
        path_pattern: re.Pattern[str],
    ) -> "StreamRequest | None":
        """Return what aiohttp's parser read, or None where its router should have a look.

        ``path`` is that of streams, see `gateway.http.paths.stream_path_pattern`.
        """
        found = path_pattern.fullmatch(message.url.raw_path)
        if found is None:
            return None
        own = found[1] and _decode_segment(found[1])
        query = _normalize_query_names(message.url.query) if "?" in message.path else _EMPTY_QUERY
        return cls(
            message.method,
            _channel_names(own, query, resolve),
            query,
            message.headers,
            message.version >= (1, 1),
            caller,
            message.path,
        )


def _normalize_query_names(query: MultiMapping[str]) -> MultiMapping[str]:
    """Return a query with the gateway's own names as it spells them. The usual one is not copied."""
    if RESERVED_QUERY_NAMES.issuperset(query) or all(canonical_query_name(name) == name for name in query):
        return query
    return MultiDictProxy(MultiDict([(canonical_query_name(name), value) for name, value in query.items()]))


def caller_of(request: web.Request) -> Caller:
    """Return who is at the other end of a request's connection."""
    protocol = request.protocol
    return protocol.caller if isinstance(protocol, AiohttpProtocol) else UNKNOWN_CALLER


def forwarded_for(headers: MultiMapping[str]) -> str | None:
    """Return the chain of addresses that proxies wrote, all headers together (RFC 9110 §5.3)."""
    return ",".join(headers.getall(_X_FORWARDED_FOR)) if _X_FORWARDED_FOR in headers else None


def _decode_segment(segment: str) -> str:
    """Return what a segment of a path spells (RFC 3986); what is no UTF-8 as U+FFFD, which no name has."""
    return unquote(segment) if "%" in segment else segment


def is_proxied(headers: MultiMapping[str]) -> bool:
    """Tell whether headers come from a proxy: from any of those that one may write about the client."""
    return any(name in headers for name in _PROXY_HEADERS)


def _channel_names(
    path_channel: str | None, query: MultiMapping[str], resolve: ResolveChannel
) -> tuple[str, ...]:
    if not query and path_channel:
        return (path_channel,)
    names = [path_channel] if path_channel else []
    for value in query.getall("channel", ()):
        if "," not in value:
            names.append(value)
            continue
        parts = [name for part in value.split(",") if (name := part.strip())]
        # A comma separates channels, unless there is no such channel and the whole is one.
        is_one = resolve(value) is not None and any(resolve(part) is None for part in parts)
        names.extend([value] if is_one else parts)
    return tuple(dict.fromkeys(name for name in names if name))
