"""Routes records: finds the channels of a record's topic, and builds the draft for each. Pure."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import msgspec

from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch, DeclaredChannel
from gateway.config.model.sources import EventMappingConfig
from gateway.config.placeholders import Expression
from gateway.config.template import MAX_FIELD_CHARS, Template, invalid_field_reason
from gateway.core.errors import RecordRejected, not_utf8_error
from gateway.core.event import (
    GAP_EVENT_TYPE,
    MAX_TIMESTAMP_MS,
    Draft,
    Record,
    client_event_type,
    parse_iso8601_ms,
)

MAX_CACHED_TOPICS = 20_000
"""Topics of one source for which the matching channels are cached (bench row: ingest)."""

MAX_KEY_CHARACTERS = 255
"""Characters of a deduplication key; a longer one is stored as its digest."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

_NO_MAPPING = EventMappingConfig.model_validate({})
_json_decoder = msgspec.json.Decoder(msgspec.Raw)


class _Envelope(msgspec.Struct):
    payload: msgspec.Raw
    type: str | None = None
    timestamp: int | float | None = None


_envelope_decoder = msgspec.json.Decoder(_Envelope)


class _Route(NamedTuple):
    """A topic, the channel that it feeds, and the channel's fields that only the record knows."""

    topic: Template
    declared: DeclaredChannel
    fields: Mapping[str, Expression]


class _TopicRoutes(NamedTuple):
    """The channels of a topic, and the routes whose channel depends on fields of each record."""

    matches: list[ChannelMatch]
    field_routes: list[tuple[_Route, Mapping[str, str]]]


class _EventExpressions:
    """The expressions that take an event's type, timestamp and deduplication key from a record."""

    __slots__ = ("deduplicate", "timestamp", "type")

    def __init__(self, config: EventMappingConfig) -> None:
        self.type = Expression(config.type) if config.type is not None else None
        self.timestamp = Expression(config.timestamp) if config.timestamp is not None else None
        self.deduplicate = Expression(config.deduplicate) if config.deduplicate is not None else None

    def evaluate(self, record: Record) -> tuple[str | None, int | None, str | None]:
        """Return type, timestamp and deduplication key. Raises RecordRejected."""
        type_, timestamp, key = record.type, record.timestamp_ms, record.deduplication_key
        if self.type is not None:
            type_ = self.type.render(record) or type_
        if self.timestamp is not None:
            text = self.timestamp.render(record)
            timestamp = timestamp if text is None else parse_timestamp(text)
        if self.deduplicate is not None:
            own = self.deduplicate.render_unambiguous(record, exclude_shared=True)
            if own is None:
                # Values that all records of a request share do not tell these records apart.
                own = self.deduplicate.render_unambiguous(record)
                own = None if own is None else f"{own}/{record.batch_index}"
            key = key if own is None else own
        return type_, timestamp, key


class _SourceRoutes:
    """The routes of one source: exact topics by name, the others in declared order."""

    __slots__ = ("cache", "event_expressions", "exact", "patterns")

    def __init__(self, event: EventMappingConfig) -> None:
        self.exact: dict[str, list[_Route]] = {}
        self.patterns: list[_Route] = []
        self.cache: OrderedDict[str, _TopicRoutes] = OrderedDict()
        self.event_expressions = _EventExpressions(event)


class Router:
    """Maps (source, record) to drafts. A record becomes at most one event of each channel."""

    def __init__(
        self,
        catalog: ChannelCatalog,
        *,
        event_bytes: int,
        events: Mapping[str, EventMappingConfig] | None = None,
    ) -> None:
        self._catalog = catalog
        self.reconfigure(event_bytes=event_bytes, events=events or {})

    def reconfigure(self, *, event_bytes: int, events: Mapping[str, EventMappingConfig]) -> None:
        """Build the routes anew from the channels that the catalog declares now."""
        sources: dict[str, _SourceRoutes] = {}
        for declared in self._catalog.declared.values():
            for spec in declared.config.from_:
                if spec.source not in sources:
                    sources[spec.source] = _SourceRoutes(events.get(spec.source) or _NO_MAPPING)
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

    def placeholders(self, source: str) -> frozenset[str]:
        """Return the placeholder names that are read from a source's records."""
        routes = self._sources.get(source)
        if routes is None:
            return frozenset()
        event = routes.event_expressions
        used = [event.type, event.timestamp, event.deduplicate]
        for route in (*chain.from_iterable(routes.exact.values()), *routes.patterns):
            used += route.fields.values()
        return frozenset(name for each in used if each is not None for name in each.placeholder_names)

    def channels(self, source: str, topic: str | None = None) -> Mapping[str, DeclaredChannel]:
        """Return the channels that a source or one of its topics feeds, by name.

        A template stands for itself where only a record's fields determine the instance.
        """
        routes = self._sources.get(source)
        if topic is None or routes is None:
            return {
                declared.name: declared
                for declared in self._catalog.declared.values()
                if any(route.source == source for route in declared.config.from_)
            }
        topic_routes = self._resolve_topic(topic, routes)
        found = {match.name: match.declared for match in topic_routes.matches}
        return found | {route.declared.name: route.declared for route, _ in topic_routes.field_routes}

    def route(self, source: str, record: Record, now: int) -> list[Draft]:
        """Return the drafts of a record; ``now`` (unix ms) is the timestamp if it has none.

        Raises RecordRejected for a record that can never become an event.
        """
        routes = self._sources.get(source)
        matches = [] if routes is None else self._matches(routes, record)
        if routes is None or not matches:
            why = None if routes is None else invalid_field_reason(record.topic)
            raise RecordRejected(
                f"no channel takes the topic {record.topic[:200]!r} of the source {source!r}"
                + (f": {why}" if why else ""),
                code="no_route",
                status=404,
            )
        type_, timestamp, key = routes.event_expressions.evaluate(record)
        fingerprint = record.request_fingerprint if key == record.deduplication_key else None
        if timestamp is not None and not 0 <= timestamp < MAX_TIMESTAMP_MS:
            raise _timestamp_error("bad_timestamp")
        key = None if key is None else _shorten_key(f"{source}/{key}")
        drafts = []
        for match in matches:
            payload, event_type, ms = _parse_payload(match, record.payload, type_, timestamp)
            ms = now if ms is None else ms
            drafts.append(self._build_draft(match, payload, event_type, ms, key, fingerprint))
        return drafts

    def create_draft(self, match: ChannelMatch, payload: bytes, type_: str | None, now: int) -> Draft:
        """Return the draft of an event that comes from no source; the payload is never an envelope.

        Raises RecordRejected, as `route` does.
        """
        if match.declared.config.payload == "text":
            _check_utf8(payload)
        else:
            payload = validate_json(payload)
        return self._build_draft(match, payload, type_, now)

    def _build_draft(
        self,
        match: ChannelMatch,
        payload: bytes,
        type_: str | None,
        timestamp: int,
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> Draft:
        if len(payload) > self._event_bytes:
            raise RecordRejected(
                f"the payload has {len(payload)} bytes; limits.event_bytes is {self._event_bytes}",
                code="too_large",
                status=413,
            )
        if type_ is not None and not type_.isascii() and _LONE_SURROGATE.search(type_):
            raise not_utf8_error("the type")
        try:
            type_ = client_event_type(type_)
        except ValueError as error:
            raise RecordRejected(str(error), code="bad_type") from None
        return Draft(
            channel=match.name,
            payload=payload,
            timestamp_ms=timestamp,
            retention=match.declared.retention,
            type=type_,
            deduplication_key=key,
            request_fingerprint=fingerprint,
        )

    def _matches(self, routes: _SourceRoutes, record: Record) -> list[ChannelMatch]:
        topic_routes = routes.cache.get(record.topic)
        if topic_routes is None:
            topic_routes = self._resolve_topic(record.topic, routes)
            # Senders can invent topics, so those without a route are not cached.
            if topic_routes.matches or topic_routes.field_routes:
                routes.cache[record.topic] = topic_routes
                if len(routes.cache) > MAX_CACHED_TOPICS:
                    routes.cache.popitem(last=False)
        else:
            routes.cache.move_to_end(record.topic)
        if not topic_routes.field_routes:
            return topic_routes.matches
        found = {match.name: match for match in topic_routes.matches}
        for route, captured in topic_routes.field_routes:
            match = self._match_by_fields(route, captured, record)
            if match is not None:
                found.setdefault(match.name, match)
        if not found:
            raise RecordRejected(_explain_missing_fields(topic_routes, record), code="no_field")
        return list(found.values())

    def _resolve_topic(self, topic: str, routes: _SourceRoutes) -> _TopicRoutes:
        matches: dict[str, ChannelMatch] = {}
        field_routes = []
        for route in (*routes.exact.get(topic, ()), *routes.patterns):
            captured = route.topic.match(topic)
            if captured is None:
                continue
            if route.fields:
                field_routes.append((route, captured))
                continue
            match = self._catalog.resolve_instance(route.declared, captured)
            if match is not None:
                matches.setdefault(match.name, match)
        return _TopicRoutes(list(matches.values()), field_routes)

    def _match_by_fields(
        self, route: _Route, captured: Mapping[str, str], record: Record
    ) -> ChannelMatch | None:
        fields = dict(captured)
        for name, expression in route.fields.items():
            text = expression.render(record)
            if not text:
                return None
            fields[name] = text
        return self._catalog.resolve_instance(route.declared, fields)


def _explain_missing_fields(topic_routes: _TopicRoutes, record: Record) -> str:
    """Return why the fields of a record determine no channel."""
    missing = "the record does not hold what the channel's name needs (fields of the route)"
    for route, _ in topic_routes.field_routes:
        for field, expression in route.fields.items():
            text = expression.render(record)
            if text and len(text) > MAX_FIELD_CHARS:
                return f"{missing}: {{{field}}} is longer than {MAX_FIELD_CHARS} characters"
            if text and (why := invalid_field_reason(text)) is not None:
                return f"{missing}: in {{{field}}} {why}"
    return missing


def gap_draft(name: str, declared: DeclaredChannel, payload: bytes, now: int) -> Draft:
    """Return the draft of a gap in a channel; under a template's name it concerns all instances.

    The gap is in the log like any event, so that streams on other nodes and later replays report it too.
    """
    return Draft(
        channel=name, payload=payload, timestamp_ms=now, retention=declared.retention, type=GAP_EVENT_TYPE
    )


def validate_json(payload: bytes) -> bytes:
    """Return the payload without outer white space if it is one JSON value (RFC 8259) in UTF-8.

    Raises RecordRejected otherwise; the bytes are never re-encoded.
    """
    _check_utf8(payload)
    try:
        return bytes(_json_decoder.decode(payload)).strip(b" \t\r\n")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RecordRejected(f"the payload is not JSON: {error}", code="not_json") from None


def parse_timestamp(text: str) -> int:
    """Parse unix milliseconds or an ISO 8601 time into unix milliseconds. Raises RecordRejected."""
    if text.isdecimal() and text.isascii() and len(text) < 16:
        return int(text)
    try:
        return parse_iso8601_ms(text)
    except ValueError:
        raise RecordRejected(
            "the timestamp is neither unix milliseconds nor an ISO 8601 time", code="bad_timestamp"
        ) from None


def _shorten_key(key: str) -> str:
    """Return the key, or its digest if it is too long or cannot be stored (unprintable)."""
    if len(key) <= MAX_KEY_CHARACTERS and key.isprintable():
        return key
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def _timestamp_error(code: str) -> RecordRejected:
    return RecordRejected("the timestamp is not in unix milliseconds", code=code)


def _parse_payload(
    match: ChannelMatch, payload: bytes, type_: str | None, timestamp: int | None
) -> tuple[bytes, str | None, int | None]:
    """Return payload, type and timestamp of the event that a record becomes on a channel."""
    kind = match.declared.config.payload
    if kind == "json":
        return validate_json(payload), type_, timestamp
    _check_utf8(payload)
    if kind == "text":
        return payload, type_, timestamp
    try:
        envelope = _envelope_decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RecordRejected(
            f"the record is no envelope {{type, payload, timestamp}}: {error}", code="bad_envelope"
        ) from None
    if envelope.timestamp is not None:
        if not 0 <= envelope.timestamp < MAX_TIMESTAMP_MS:
            raise _timestamp_error("bad_envelope")
        timestamp = int(envelope.timestamp)
    return bytes(envelope.payload), type_ if envelope.type is None else envelope.type, timestamp


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise not_utf8_error("the payload", error.start) from None
