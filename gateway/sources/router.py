"""Records to drafts: which channels a topic feeds, and what of the record becomes the event. Pure."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.config.catalog import Catalog, Declared, Match
from gateway.config.model.sources import EventFrom
from gateway.config.placeholders import Expression
from gateway.config.template import MAX_FIELD, Template, why_not
from gateway.core.errors import Rejected, not_utf8
from gateway.core.event import GAP, MAX_TIMESTAMP, Draft, Record, parse_time, safe_type

CACHE = 20_000
"""How many topics a source's routes are remembered for."""

MAX_KEY = 255
"""Characters of a deduplication key; a longer one is stored as its digest."""

_LONE = re.compile("[\ud800-\udfff]")

_json = msgspec.json.Decoder(msgspec.Raw)


class _Envelope(msgspec.Struct):
    payload: msgspec.Raw
    type: str | None = None
    timestamp: int | float | None = None


_envelope = msgspec.json.Decoder(_Envelope)


class _Route(NamedTuple):
    """A topic, the channel that it feeds, and the channel's fields that only the record knows."""

    topic: Template
    declared: Declared
    fields: Mapping[str, Expression]


class _Way(NamedTuple):
    """Where a topic's records go: to these channels, and to those that each record names itself."""

    matches: list[Match]
    named: list[tuple[_Route, Mapping[str, str]]]


class _Event:
    """What of a source's records becomes the event."""

    __slots__ = ("deduplicate", "timestamp", "type")

    def __init__(self, config: EventFrom) -> None:
        self.type = _expression(config.type)
        self.timestamp = _expression(config.timestamp)
        self.deduplicate = _expression(config.deduplicate)

    def read(self, record: Record) -> tuple[str | None, int | None, str | None]:
        """Return type, timestamp and deduplication key. Raises Rejected."""
        type_, timestamp, key = record.type, record.timestamp, record.key
        if self.type is not None:
            type_ = self.type.render(record) or type_
        if self.timestamp is not None:
            text = self.timestamp.render(record)
            timestamp = timestamp if text is None else parsed_time(text)
        if self.deduplicate is not None:
            own = self.deduplicate.identity(record, own=True)
            if own is None:
                # What it shares with others does not tell them apart.
                own = self.deduplicate.identity(record)
                own = None if own is None else f"{own}/{record.index}"
            key = key if own is None else own
        return type_, timestamp, key


class _Routes:
    """One source's routes: topics without wildcards by name, the others in declared order."""

    __slots__ = ("cache", "event", "exact", "patterns")

    def __init__(self, event: EventFrom | None) -> None:
        self.exact: dict[str, list[_Route]] = {}
        self.patterns: list[_Route] = []
        self.cache: OrderedDict[str, _Way] = OrderedDict()
        self.event = _Event(event) if event is not None and event.model_fields_set else None


class Router:
    """Maps (source, record) to drafts. A record becomes at most one event of each channel."""

    def __init__(
        self, catalog: Catalog, *, event_bytes: int, events: Mapping[str, EventFrom] | None = None
    ) -> None:
        self._catalog = catalog
        self.reconfigure(event_bytes=event_bytes, events=events or {})

    def reconfigure(self, *, event_bytes: int, events: Mapping[str, EventFrom]) -> None:
        """Route to the channels that the catalog declares by now."""
        sources: dict[str, _Routes] = {}
        for declared in self._catalog.declared.values():
            for spec in declared.spec.from_:
                if spec.source not in sources:
                    sources[spec.source] = _Routes(events.get(spec.source))
                routes = sources[spec.source]
                fields = {name: Expression(text) for name, text in spec.fields.items()}
                route = _Route(Template(spec.topic, glob=True), declared, fields)
                if route.topic.is_exact:
                    routes.exact.setdefault(spec.topic, []).append(route)
                else:
                    routes.patterns.append(route)
        self._event_bytes = event_bytes
        self._sources = sources

    def topics(self, source: str) -> list[Template]:
        """Return the topics that a source has to read, each once, in a stable order."""
        routes = self._sources.get(source)
        if routes is None:
            return []
        patterns = {route.topic.redis_pattern: route.topic for route in routes.patterns}
        return [group[0].topic for group in routes.exact.values()] + list(patterns.values())

    def places(self, source: str) -> frozenset[str]:
        """Return the names of all places that a source's records are asked for."""
        routes = self._sources.get(source)
        if routes is None:
            return frozenset()
        event = routes.event
        asked = [event.type, event.timestamp, event.deduplicate] if event is not None else []
        for route in (*(each for group in routes.exact.values() for each in group), *routes.patterns):
            asked += route.fields.values()
        return frozenset(name for each in asked if each is not None for name in each.names)

    def channels(self, source: str, topic: str | None = None) -> Mapping[str, Declared]:
        """Return the channels that a source feeds, or one of its topics, by name.

        They are declared names where only the records themselves tell the instance.
        """
        routes = self._sources.get(source)
        if topic is None or routes is None:
            return {
                declared.name: declared
                for declared in self._catalog.declared.values()
                if any(route.source == source for route in declared.spec.from_)
            }
        way = self._way(topic, routes)
        found = {match.name: match.declared for match in way.matches}
        return found | {route.declared.name: route.declared for route, _ in way.named}

    def drafts(self, source: str, record: Record, now: int) -> list[Draft]:
        """Return the drafts of a record; ``now`` (unix ms) is used where it brings no timestamp.

        Raises Rejected for a record that can never become an event.
        """
        routes = self._sources.get(source)
        matches = [] if routes is None else self._matches(routes, record)
        if routes is None or not matches:
            why = None if routes is None else why_not(record.topic)
            raise Rejected(
                f"no channel takes the topic {record.topic[:200]!r} of the source {source!r}"
                + (f": {why}" if why else ""),
                code="no_route",
                status=404,
            )
        type_, timestamp, key = record.type, record.timestamp, record.key
        if routes.event is not None:
            type_, timestamp, key = routes.event.read(record)
        fingerprint = record.fingerprint if key == record.key else None
        if timestamp is not None and not 0 <= timestamp < MAX_TIMESTAMP:
            raise Rejected("the timestamp is not in unix milliseconds", code="bad_timestamp")
        key = None if key is None else _bounded(f"{source}/{key}")
        return [
            self._draft(match, record.payload, type_, timestamp, key, fingerprint, now) for match in matches
        ]

    def by_hand(self, match: Match, payload: bytes, type_: str | None, now: int) -> Draft:
        """Return the draft of an event that no source brings; an envelope's payload comes without it.

        Raises Rejected, as `drafts` does.
        """
        if match.declared.spec.payload == "text":
            _check_text(payload)
        else:
            payload = checked_json(payload)
        return self._checked(match, payload, type_, now)

    def _draft(
        self,
        match: Match,
        payload: bytes,
        type_: str | None,
        timestamp: int | None,
        key: str | None,
        fingerprint: str | None,
        now: int,
    ) -> Draft:
        kind = match.declared.spec.payload
        if kind == "text":
            _check_text(payload)
        elif kind == "json":
            payload = checked_json(payload)
        else:
            envelope = _open_envelope(payload)
            payload = bytes(envelope.payload)
            type_ = envelope.type if envelope.type is not None else type_
            timestamp = _milliseconds(envelope.timestamp) if envelope.timestamp is not None else timestamp
        timestamp = now if timestamp is None else timestamp
        return self._checked(match, payload, type_, timestamp, key, fingerprint)

    def _checked(
        self,
        match: Match,
        payload: bytes,
        type_: str | None,
        timestamp: int,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> Draft:
        if len(payload) > self._event_bytes:
            raise Rejected(
                f"the payload has {len(payload)} bytes; limits.event_bytes is {self._event_bytes}",
                code="too_large",
                status=413,
            )
        if type_ is not None and not type_.isascii() and _LONE.search(type_):
            raise not_utf8("the type")
        try:
            type_ = safe_type(type_)
        except ValueError as error:
            raise Rejected(str(error), code="bad_type") from None
        return Draft(
            channel=match.name,
            payload=payload,
            timestamp=timestamp,
            retention=match.declared.retention,
            type=type_,
            key=key,
            fingerprint=fingerprint,
        )

    def _matches(self, routes: _Routes, record: Record) -> list[Match]:
        way = routes.cache.get(record.topic)
        if way is None:
            way = self._way(record.topic, routes)
            if way.matches or way.named:  # senders invent topics; what leads nowhere is not remembered
                routes.cache[record.topic] = way
                if len(routes.cache) > CACHE:
                    routes.cache.popitem(last=False)
        else:
            routes.cache.move_to_end(record.topic)
        if not way.named:
            return way.matches
        found = {match.name: match for match in way.matches}
        for route, captured in way.named:
            match = self._named(route, captured, record)
            if match is not None:
                found.setdefault(match.name, match)
        if not found:
            raise Rejected(self._why_unnamed(way, record), code="no_field")
        return list(found.values())

    def _way(self, topic: str, routes: _Routes) -> _Way:
        matches: dict[str, Match] = {}
        named = []
        for route in (*routes.exact.get(topic, ()), *routes.patterns):
            captured = route.topic.match(topic)
            if captured is None:
                continue
            if route.fields:
                named.append((route, captured))
                continue
            match = self._catalog.instance(route.declared, captured)
            if match is not None:
                matches.setdefault(match.name, match)
        return _Way(list(matches.values()), named)

    def _why_unnamed(self, way: _Way, record: Record) -> str:
        """Return why a record names no channel."""
        missing = "the record does not hold what the channel's name needs (fields of the route)"
        for route, _ in way.named:
            for field, expression in route.fields.items():
                text = expression.render(record)
                if text and len(text) > MAX_FIELD:
                    return f"{missing}: {{{field}}} is longer than {MAX_FIELD} characters"
                if text and (why := why_not(text)) is not None:
                    return f"{missing}: in {{{field}}} {why}"
        return missing

    def _named(self, route: _Route, captured: Mapping[str, str], record: Record) -> Match | None:
        fields = dict(captured)
        for name, expression in route.fields.items():
            text = expression.render(record)
            if not text:
                return None
            fields[name] = text
        return self._catalog.instance(route.declared, fields)


def gap_draft(name: str, declared: Declared, payload: bytes, now: int) -> Draft:
    """Return the draft of a hole in a channel; under a template's name it concerns all instances.

    The gap lives in the log like any event, so that other nodes and later readers are told as well.
    """
    return Draft(channel=name, payload=payload, timestamp=now, retention=declared.retention, type=GAP)


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


def parsed_time(text: str) -> int:
    """Return unix milliseconds from such a number, or from ISO 8601. Raises Rejected."""
    if text.isdecimal() and text.isascii() and len(text) < 16:
        return int(text)
    try:
        return parse_time(text)
    except ValueError:
        raise Rejected(
            "the timestamp is neither unix milliseconds nor an ISO 8601 time", code="bad_timestamp"
        ) from None


def _bounded(key: str) -> str:
    """Return a key that the log can take: long ones, and those that no log can store, by their digest."""
    if len(key) <= MAX_KEY and key.isprintable():
        return key
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _expression(text: str | None) -> Expression | None:
    return None if text is None else Expression(text)


def _milliseconds(timestamp: float) -> int:
    if not 0 <= timestamp < MAX_TIMESTAMP:
        raise Rejected("timestamp is not in unix milliseconds", code="bad_envelope")
    return int(timestamp)


def _check_text(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise not_utf8("the payload", error.start) from None
