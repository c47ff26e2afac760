"""Requests for streams, whichever way they came: over aiohttp's handlers or over the fast path."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

import msgspec
from aiohttp import web
from multidict import MultiDict, MultiDictProxy, MultiMapping, istr

from gateway.config.model.auth import RESERVED_QUERY_NAMES, canonical_query_name
from gateway.http.aiohttp_protocol import AiohttpProtocol
from gateway.http.paths import stream_path_pattern
from gateway.streams.quotas.client_limits import UNKNOWN_CALLER, Caller

if TYPE_CHECKING:
    from aiohttp.http_parser import RawRequestMessage

_X_FORWARDED_FOR = istr("X-Forwarded-For")
_PROXY_HEADERS = (_X_FORWARDED_FOR, istr("Forwarded"), istr("Via"), istr("X-Real-IP"))
_EMPTY_QUERY: MultiMapping[str] = MultiDictProxy(MultiDict())


class StreamRequest(msgspec.Struct, frozen=True):
    """The parts of a request that decide about its stream."""

    method: str
    channels: tuple[str, ...]
    """The names in ``/events/{channel}`` and ``?channel=a&channel=b,c``, each once, in order."""
    query: MultiMapping[str]
    """The query, with the gateway's own names in their canonical case."""
    headers: MultiMapping[str]
    is_chunked: bool
    """Whether the client speaks HTTP/1.1; without it the end of the connection ends the body."""
    caller: Caller
    """The client: behind trusted proxies, the address that they forward for."""
    uri: str
    """Path and query as they were sent."""
    peer: Caller = UNKNOWN_CALLER
    """The other end of the connection: the client, or a proxy."""

    @property
    def unknown_query_names(self) -> list[str]:
        """Query names that are none of the gateway's own. One without a value may be a lost token."""
        if RESERVED_QUERY_NAMES.issuperset(self.query):
            return []
        return [name for name, value in self.query.items() if value and name not in RESERVED_QUERY_NAMES]

    @property
    def is_proxied(self) -> bool:
        """Whether a proxy sent the request."""
        return is_proxied(self.headers)


class RequestParser:
    """Reads requests for streams below ``base_path``.

    ``resolve_channel`` finds the channel of a name, or None. ``resolve_forwarded`` returns the client
    behind a peer, by the addresses that proxies forwarded.
    """

    def __init__(
        self,
        resolve_channel: Callable[[str], object],
        resolve_forwarded: Callable[[Caller, str], Caller],
        base_path: str = "",
    ) -> None:
        self._resolve_channel = resolve_channel
        self._resolve_forwarded = resolve_forwarded
        self._path_pattern = stream_path_pattern(base_path)

    def from_aiohttp(self, request: web.Request) -> StreamRequest:
        """Return a request that aiohttp routed to a handler."""
        segment = None
        if "channel" in request.match_info:
            segment = request.rel_url.raw_path.rstrip("/").rpartition("/")[2]
        query = _normalize_query_names(request.query)
        peer, headers = caller_of(request), request.headers
        return StreamRequest(
            request.method,
            self._channel_names(segment, query),
            query,
            headers,
            request.version >= (1, 1),
            self._caller(peer, headers),
            request.raw_path,
            peer,
        )

    def from_message(self, message: "RawRequestMessage", peer: Caller) -> StreamRequest | None:
        """Return a request that aiohttp's parser read; None if its path is not a stream's."""
        found = self._path_pattern.fullmatch(message.url.raw_path)
        if found is None:
            return None
        query = _normalize_query_names(message.url.query) if "?" in message.path else _EMPTY_QUERY
        return StreamRequest(
            message.method,
            self._channel_names(found[1], query),
            query,
            message.headers,
            message.version >= (1, 1),
            self._caller(peer, message.headers),
            message.path,
            peer,
        )

    def _caller(self, peer: Caller, headers: MultiMapping[str]) -> Caller:
        forwarded = forwarded_for(headers)
        return peer if forwarded is None else self._resolve_forwarded(peer, forwarded)

    def _channel_names(self, segment: str | None, query: MultiMapping[str]) -> tuple[str, ...]:
        # What is no UTF-8 becomes U+FFFD, which no channel's name has.
        path_channel = unquote(segment) if segment and "%" in segment else segment
        if not query and path_channel:
            return (path_channel,)
        names = [path_channel] if path_channel else []
        for value in query.getall("channel", ()):
            if "," not in value:
                names.append(value)
                continue
            parts = [name for part in value.split(",") if (name := part.strip())]
            # A comma separates channels, unless there is no such channel and the whole is one.
            is_one = self._resolve_channel(value) is not None and any(
                self._resolve_channel(part) is None for part in parts
            )
            names.extend([value] if is_one else parts)
        return tuple(dict.fromkeys(name for name in names if name))


def _normalize_query_names(query: MultiMapping[str]) -> MultiMapping[str]:
    """Return a query with the gateway's own names in their canonical case. The usual query is not copied."""
    if RESERVED_QUERY_NAMES.issuperset(query) or all(canonical_query_name(name) == name for name in query):
        return query
    return MultiDictProxy(MultiDict([(canonical_query_name(name), value) for name, value in query.items()]))


def caller_of(request: web.Request) -> Caller:
    """Return the other end of a request's connection: the client, or a proxy."""
    protocol = request.protocol
    return protocol.caller if isinstance(protocol, AiohttpProtocol) else UNKNOWN_CALLER


def forwarded_for(headers: MultiMapping[str]) -> str | None:
    """Return the addresses that proxies forwarded, all headers joined (RFC 9110 §5.3)."""
    return ",".join(headers.getall(_X_FORWARDED_FOR)) if _X_FORWARDED_FOR in headers else None


def is_proxied(headers: MultiMapping[str]) -> bool:
    """Return whether a proxy sent these headers: whether they hold any that a proxy adds about its client."""
    return any(name in headers for name in _PROXY_HEADERS)
