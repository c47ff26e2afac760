"""Builds a test record that reaches a channel through one of its sources. Pure."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.cli.terminal.signing import CannotSign, check_can_sign
from gateway.config.channel_catalog import ChannelCatalog, ChannelMatch
from gateway.config.loader.issues import suggest_nearest
from gateway.config.model.config import Config, RouteConfig
from gateway.config.model.sources import (
    KafkaConfig,
    RedisStreamConfig,
    SourceConfig,
    WebhookConfig,
    disabled_reason,
)
from gateway.config.template import Template, field_names, fill_fields
from gateway.core.errors import NotFound, RecordRejected
from gateway.core.event import Record, client_event_type
from gateway.sources.router import Router, validate_json

STAR_SAMPLE, QUESTION_MARK_SAMPLE = "test", "x"
"""Values for ``*`` and ``?`` in a topic pattern."""

_HEADER_PLACEHOLDER = re.compile(r"\{headers\.([^{}]+)\}")
_FIELD_PLACEHOLDER = re.compile(r"\{fields\.([^{}]+)\}")

_TYPED_FORMATS = ("auto", "cloudevents")


@dataclass(frozen=True, slots=True)
class TestRecord:
    """A record to send, and the source that receives it."""

    source: str
    source_config: SourceConfig
    topic: str
    payload: bytes
    type: str | None = None
    """None if the payload's envelope has the type."""
    key: str | None = None
    """Key of a Kafka record, or ``Idempotency-Key`` of a post."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    """Of a Redis stream's entry, besides payload and type."""
    reached_channels: Sequence[str] = ()
    """All channels that receive an event of it."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """The event to publish, and optionally its source and topic."""

    channel: str
    payload: bytes | None
    """None: a test payload that the channel accepts."""
    type: str | None = None
    key: str | None = None
    source: str | None = None
    topic: str | None = None
    number: int = 1


NOTHING_MISSING: Mapping[str, str] = {}


def build_test_record(
    config: Config, request: PublishRequest, missing_by_source: Mapping[str, str] = NOTHING_MISSING
) -> TestRecord:
    """Return a record for the best source: webhooks come first, as their responses hold the event's id.

    ``missing_by_source`` has the reasons why sources cannot be used from here. Raises NotFound for an unknown
    channel, RecordRejected with all reasons if no source can be used.
    """
    catalog = ChannelCatalog(config.channels)
    match = catalog.resolve(request.channel)
    if match is None:
        if request.channel in catalog.declared:
            example = fill_fields(request.channel, dict.fromkeys(field_names(request.channel), "42"))
            raise NotFound(f"{request.channel} is a template: name one of its channels, such as {example}")
        hint = suggest_nearest(request.channel, catalog.declared)
        raise NotFound(f"no channel is called {request.channel!r}; {hint}")
    router = Router(
        catalog,
        event_bytes=config.limits.event_bytes,
        events={name: source.event for name, source in config.sources.items()},
    )
    payload = _build_payload(match, request)
    reasons = []
    routes = match.declared.config.from_
    for route in sorted(routes, key=lambda each: not isinstance(config.sources[each.source], WebhookConfig)):
        if request.source is not None and route.source != request.source:
            continue
        if route.source in missing_by_source:
            reasons.append(f"{route.source}: {missing_by_source[route.source]}")
            continue
        try:
            return _build_for_route(config, router, match, route, request, payload)
        except (RecordRejected, CannotSign, NotFound) as error:
            reasons.append(f"{route.source}: {error}")
    if not reasons:
        feeding = ", ".join(dict.fromkeys(route.source for route in routes))
        reasons.append(f"the source {request.source!r} does not feed it; these do: {feeding}")
    raise RecordRejected(
        "\n".join((f"cannot send to {match.name}:", *(f"  {each}" for each in reasons))), code="no_route"
    )


def _build_payload(match: ChannelMatch, request: PublishRequest) -> bytes:
    """Return the event's payload. Raises RecordRejected if the channel does not accept it."""
    is_text = match.declared.config.payload == "text"
    if request.payload is None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        document = json.dumps({"test": True, "number": request.number, "at": now})
        return f"test {request.number}, {now}".encode() if is_text else document.encode()
    if is_text:
        return request.payload
    try:
        return validate_json(request.payload)
    except RecordRejected as error:
        raise RecordRejected(
            f"{match.name} requires JSON, and this is not ({error.message}); quote text: '\"text\"'",
            code=error.code,
        ) from None


def _build_for_route(
    config: Config,
    router: Router,
    match: ChannelMatch,
    route: RouteConfig,
    request: PublishRequest,
    payload: bytes,
) -> TestRecord:
    """Return the record for a route, checked by the router. Raises RecordRejected or CannotSign."""
    source = config.sources[route.source]
    topic = _route_topic(route, match, request.topic)
    headers: dict[str, str] = {}
    fields: dict[str, str] = {}
    key = request.key
    for name, expression in route.fields.items():
        value = match.fields.get(name, STAR_SAMPLE)
        if expression == "{key}" and isinstance(source, KafkaConfig):
            key = value
        _set_placeholder(expression, value, headers, fields)
    type_ = request.type
    if match.declared.config.payload == "envelope":
        payload = _wrap_in_envelope(type_, payload)
        type_ = None
    elif type_ is not None:
        if source.event.type is not None:
            _set_placeholder(source.event.type, type_, headers, fields)
            type_ = None
        else:
            _check_carries_type(source)
    _check_can_send(source)
    values = _placeholder_values(source, key, headers, fields)
    record = Record(topic, payload, type=type_, placeholder_values=values)
    drafts = {draft.channel: draft for draft in router.route(route.source, record, 0)}
    if match.name not in drafts:
        raise RecordRejected(f"the topic {topic!r} leads to {', '.join(drafts)} instead", code="no_route")
    if request.type is not None and drafts[match.name].type != client_event_type(request.type):
        raise RecordRejected(
            f"its type would be {drafts[match.name].type!r}, by sources.{route.source}.event.type",
            code="bad_type",
        )
    return TestRecord(route.source, source, topic, payload, type_, key, headers, fields, tuple(drafts))


def _route_topic(route: RouteConfig, match: ChannelMatch, given: str | None) -> str:
    template = Template(route.topic, glob=True)
    if given is not None:
        if template.match(given) is None:
            raise RecordRejected(f"accepts the topic {route.topic!r}, not {given!r}", code="no_route")
        return given
    named = {name: match.fields.get(name, STAR_SAMPLE) for name in template.fields}
    return fill_fields(route.topic, named).replace("*", STAR_SAMPLE).replace("?", QUESTION_MARK_SAMPLE)


def _set_placeholder(expression: str, value: str, headers: dict[str, str], fields: dict[str, str]) -> None:
    """Set the header or field to which an expression refers, if it does."""
    if (header := _HEADER_PLACEHOLDER.fullmatch(expression)) is not None:
        headers[header[1]] = value
    elif (named := _FIELD_PLACEHOLDER.fullmatch(expression)) is not None:
        fields[named[1]] = value


def _wrap_in_envelope(type_: str | None, payload: bytes) -> bytes:
    member = b"" if type_ is None else b'"type":%b,' % json.dumps(type_).encode()
    return b'{%b"payload":%b}' % (member, payload)


def _check_carries_type(source: SourceConfig) -> None:
    """Raise RecordRejected for a source whose records have no type."""
    if isinstance(source, RedisStreamConfig):
        return
    if isinstance(source, WebhookConfig) and (source.verify.github or source.format in _TYPED_FORMATS):
        return
    raise RecordRejected(
        "its records have no type: set payload: envelope on the channel, or event.type on the source",
        code="bad_type",
    )


def _check_can_send(source: SourceConfig) -> None:
    """Raise RecordRejected or CannotSign for a source to which no test record can be sent."""
    if isinstance(source, WebhookConfig):
        check_can_sign(source.verify)
        if source.format in ("kafka-records", "event-hubs"):
            raise RecordRejected(
                f"accepts {source.format} only, which this command does not write", code="no_route"
            )
    elif reason := disabled_reason(source):
        raise RecordRejected(f"is off: {reason}", code="no_route")


def _placeholder_values(
    source: SourceConfig, key: str | None, headers: Mapping[str, str], fields: Mapping[str, str]
) -> Mapping[str, str]:
    """Return the values of placeholders besides the payload's."""
    values = {f"headers.{name.lower()}": text for name, text in headers.items()}
    values |= {f"fields.{name}": text for name, text in fields.items()}
    return values | ({"key": key} if key is not None and isinstance(source, KafkaConfig) else {})
