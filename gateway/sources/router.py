"""Records to drafts: which channels a topic feeds, and what of the record becomes the event. Pure."""

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from gateway.config.catalog import Catalog, Declared, Match
from gateway.config.template import Template
from gateway.errors import Rejected
from gateway.event import GAP, Draft, Record, safe_type

CACHE = 20_000
"""How many topics a source's routes are remembered for."""

_MAX_TIMESTAMP = 10**14  # the year 5138; larger numbers are micro- or nanoseconds
_json = msgspec.json.Decoder(msgspec.Raw)


class _Envelope(msgspec.Struct):
    payload: msgspec.Raw
    type: str | None = None
    timestamp: int | float | None = None


_envelope = msgspec.json.Decoder(_Envelope)


class _Routes:
    """One source's routes: topics without wildcards by name, the others in declared order."""

    __slots__ = ("cache", "exact", "patterns")

    def __init__(self) -> None:
        self.exact: dict[str, list[tuple[Template, Declared]]] = {}
        self.patterns: list[tuple[Template, Declared]] = []
        self.cache: OrderedDict[str, list[Match]] = OrderedDict()


class Router:
    """Maps (source, record) to drafts. A record becomes at most one event of each channel."""

    def __init__(self, catalog: Catalog, *, event_bytes: int) -> None:
        self._catalog = catalog
        self._event_bytes = event_bytes
        self._sources: dict[str, _Routes] = {}
        for declared in catalog.declared.values():
            for route in declared.spec.from_:
                routes = self._sources.setdefault(route.source, _Routes())
                topic = Template(route.topic, glob=True)
                if topic.is_exact:
                    routes.exact.setdefault(route.topic, []).append((topic, declared))
                else:
                    routes.patterns.append((topic, declared))

    def topics(self, source: str) -> list[Template]:
        """Return the topics that a source has to read, each once, in a stable order."""
        routes = self._sources.get(source, _Routes())
        templates = [group[0][0] for group in routes.exact.values()]
        patterns = {topic.redis_pattern: topic for topic, _ in routes.patterns}
        return templates + list(patterns.values())

    def channels(self, source: str) -> list[Declared]:
        """Return the declared channels that a source feeds."""
        return [
            declared
            for declared in self._catalog.declared.values()
            if any(route.source == source for route in declared.spec.from_)
        ]

    def drafts(self, source: str, record: Record, now: int) -> list[Draft]:
        """Return the drafts of a record; ``now`` (unix ms) is used where it brings no timestamp.

        Raises Rejected for a record that can never become an event.
        """
        matches = self._match(source, record.topic)
        if not matches:
            raise Rejected(
                f"no channel takes the topic {record.topic[:200]!r} of the source {source!r}",
                code="no_route",
                status=404,
            )
        key = None if record.key is None else f"{source}/{record.key}"
        return [self._draft(match, record, key, now) for match in matches]

    def _draft(self, match: Match, record: Record, key: str | None, now: int) -> Draft:
        kind = match.declared.spec.payload
        payload, type_, timestamp = record.payload, record.type, record.timestamp
        if kind == "text":
            _check_text(payload)
        elif kind == "json":
            payload = checked_json(payload)
        else:
            envelope = _open_envelope(payload)
            payload = bytes(envelope.payload)
            type_ = envelope.type if envelope.type is not None else type_
            timestamp = _milliseconds(envelope.timestamp) if envelope.timestamp is not None else timestamp
        if len(payload) > self._event_bytes:
            raise Rejected(
                f"the payload has {len(payload)} bytes; limits.event_bytes is {self._event_bytes}",
                code="too_large",
                status=413,
            )
        try:
            type_ = safe_type(type_)
        except ValueError as error:
            raise Rejected(str(error), code="bad_type") from None
        return Draft(
            channel=match.name,
            payload=payload,
            timestamp=now if timestamp is None else timestamp,
            retention=match.declared.retention,
            type=type_,
            key=key,
        )

    def _match(self, source: str, topic: str) -> list[Match]:
        routes = self._sources.get(source)
        if routes is None:
            return []
        cached = routes.cache.get(topic)
        if cached is not None:
            routes.cache.move_to_end(topic)
            return cached
        matches = list(self._instances(topic, (*routes.exact.get(topic, ()), *routes.patterns)))
        routes.cache[topic] = matches
        if len(routes.cache) > CACHE:
            routes.cache.popitem(last=False)
        return matches

    def _instances(self, topic: str, routes: Iterable[tuple[Template, Declared]]) -> Iterable[Match]:
        seen: set[str] = set()
        for template, declared in routes:
            fields = template.match(topic)
            match = self._catalog.instance(declared, fields) if fields is not None else None
            if match is not None and match.name not in seen:
                seen.add(match.name)
                yield match


def gap_draft(declared: Declared, payload: bytes, now: int) -> Draft:
    """Return the draft of a hole in a declared channel; for a template it concerns all instances.

    The gap lives in the log like any event, so that other nodes and later readers are told as well.
    """
    return Draft(
        channel=declared.name, payload=payload, timestamp=now, retention=declared.retention, type=GAP
    )


def checked_json(payload: bytes) -> bytes:
    """Return the payload without outer white space if it is one JSON value (RFC 8259), in UTF-8.

    Raises Rejected otherwise; the bytes are never re-encoded.
    """
    _check_text(payload)
    try:
        return bytes(_json.decode(payload)).strip(b" \t\r\n")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Rejected(f"the payload is not JSON: {error}", code="not_json") from None


def _open_envelope(payload: bytes) -> _Envelope:
    _check_text(payload)
    try:
        return _envelope.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Rejected(
            f"the record is no envelope {{type, payload, timestamp}}: {error}", code="bad_envelope"
        ) from None


def _milliseconds(timestamp: float) -> int:
    if not 0 <= timestamp < _MAX_TIMESTAMP:
        raise Rejected("timestamp is not in unix milliseconds", code="bad_envelope")
    return int(timestamp)


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise Rejected(f"the payload is not UTF-8 (byte {error.start})", code="not_utf8") from None
