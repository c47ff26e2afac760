"""Which sources feed a channel, and what a record must be for it. Pure."""

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
    RedisPubSubConfig,
    RedisStreamConfig,
    SourceConfig,
    WebhookConfig,
)
from gateway.config.template import Template, field_names, fill_fields
from gateway.core.errors import NotFound, RecordRejected
from gateway.core.event import Record, client_event_type
from gateway.sources.router import Router, validate_json

STAR_SAMPLE, QUESTION_MARK_SAMPLE = "test", "x"
"""What stands for a topic's ``*`` and ``?``."""

_HEADER_PLACEHOLDER = re.compile(r"\{headers\.([^{}]+)\}")
_FIELD_PLACEHOLDER = re.compile(r"\{fields\.([^{}]+)\}")

_TYPED_FORMATS = ("auto", "cloudevents")


@dataclass(frozen=True, slots=True)
class TestRecord:
    """A record on its way: through which source, under which topic, and what goes along."""

    source: str
    source_config: SourceConfig
    topic: str
    payload: bytes
    type: str | None = None
    """Where the record itself carries it: in an envelope it is part of the payload."""
    key: str | None = None
    """A Kafka record's key; of a post its ``Idempotency-Key``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    """Of a Redis stream's entry, beside payload and type."""
    reached_channels: Sequence[str] = ()
    """All channels that get an event of it."""


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What is to arrive, and by which way if somebody minds."""

    channel: str
    payload: bytes | None
    """None: any; each channel has one that it takes."""
    type: str | None = None
    key: str | None = None
    source: str | None = None
    topic: str | None = None
    number: int = 1


NOTHING_MISSING: Mapping[str, str] = {}


def build_test_record(
    config: Config, request: PublishRequest, missing_by_source: Mapping[str, str] = NOTHING_MISSING
) -> TestRecord:
    """Return the best way to send: a webhook before all others, for its answer tells the id.

    ``lacking`` says of sources why they cannot be used from here.

    Raises NotFound where there is no such channel, Rejected with all reasons where nothing can feed it.
    """
    catalog = ChannelCatalog(config.channels)
    match = catalog.resolve(request.channel)
    if match is None:
        raise NotFound(_unknown_channel(catalog, request.channel))
    router = Router(
        catalog,
        event_bytes=config.limits.event_bytes,
        events={name: source.event for name, source in config.sources.items()},
    )
    payload = _build_payload(match, request)
    reasons = []
    for route in _webhooks_first(config, match):
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
        feeding = ", ".join(dict.fromkeys(route.source for route in match.declared.config.from_))
        reasons.append(f"the source {request.source!r} does not feed it; these do: {feeding}")
    raise RecordRejected(
        "\n".join((f"cannot send to {match.name}:", *(f"  {each}" for each in reasons))), code="no_route"
    )


def _unknown_channel(catalog: ChannelCatalog, name: str) -> str:
    if name in catalog.declared:
        example = fill_fields(name, dict.fromkeys(field_names(name), "42"))
        return f"{name} stands for many channels: name one of them, such as {example}"
    return f"no channel is called {name!r}; {suggest_nearest(name, catalog.declared)}"


def _webhooks_first(config: Config, match: ChannelMatch) -> list[RouteConfig]:
    return sorted(
        match.declared.config.from_,
        key=lambda route: not isinstance(config.sources[route.source], WebhookConfig),
    )


def _build_payload(match: ChannelMatch, request: PublishRequest) -> bytes:
    """Return the event's payload. Raises Rejected for one that the channel does not take."""
    is_text = match.declared.config.payload == "text"
    if request.payload is None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = json.dumps({"test": True, "number": request.number, "at": now})
        return f"test {request.number}, {now}".encode() if is_text else told.encode()
    if is_text:
        return request.payload
    try:
        return validate_json(request.payload)
    except RecordRejected as error:
        raise RecordRejected(
            f"{match.name} takes JSON, and this is none ({error.message}); text stands in quotes: '\"text\"'",
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
    """Return the parcel for a route after the router had a look at it. Raises Rejected, Unsignable."""
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
        raise RecordRejected(
            f"the topic {topic!r} leads to {', '.join(drafts)}, and not here", code="no_route"
        )
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
            raise RecordRejected(f"takes the topic {route.topic!r}, and not {given!r}", code="no_route")
        return given
    named = {name: match.fields.get(name, STAR_SAMPLE) for name in template.fields}
    return fill_fields(route.topic, named).replace("*", STAR_SAMPLE).replace("?", QUESTION_MARK_SAMPLE)


def _set_placeholder(expression: str, value: str, headers: dict[str, str], fields: dict[str, str]) -> None:
    """Put a value where an expression looks for it, where that is a header or field of the record."""
    if (header := _HEADER_PLACEHOLDER.fullmatch(expression)) is not None:
        headers[header[1]] = value
    elif (named := _FIELD_PLACEHOLDER.fullmatch(expression)) is not None:
        fields[named[1]] = value


def _wrap_in_envelope(type_: str | None, payload: bytes) -> bytes:
    told = b"" if type_ is None else b'"type":%b,' % json.dumps(type_).encode()
    return b'{%b"payload":%b}' % (told, payload)


def _check_carries_type(source: SourceConfig) -> None:
    """Raise Rejected for a source whose records carry no type."""
    if isinstance(source, RedisStreamConfig):
        return
    if isinstance(source, WebhookConfig) and (source.verify.github or source.format in _TYPED_FORMATS):
        return
    raise RecordRejected(
        "its records carry no type: on a channel with payload: envelope they do, or by event.type",
        code="bad_type",
    )


def _check_can_send(source: SourceConfig) -> None:
    """Raise Rejected or Unsignable for a source that cannot be sent to."""
    if isinstance(source, WebhookConfig):
        check_can_sign(source.verify)
        if source.format in ("kafka-records", "event-hubs"):
            raise RecordRejected(f"takes {source.format} only, which other senders write", code="no_route")
    elif isinstance(source, (RedisPubSubConfig, RedisStreamConfig)):
        if not source.url.get_secret_value():
            raise RecordRejected("is off: its url is empty", code="no_route")
    elif not source.brokers:
        raise RecordRejected("is off: its brokers are empty", code="no_route")


def _placeholder_values(
    source: SourceConfig, key: str | None, headers: Mapping[str, str], fields: Mapping[str, str]
) -> Mapping[str, str]:
    """Return what expressions find beside the payload."""
    values = {f"headers.{name.lower()}": text for name, text in headers.items()}
    values |= {f"fields.{name}": text for name, text in fields.items()}
    return values | ({"key": key} if key is not None and isinstance(source, KafkaConfig) else {})
