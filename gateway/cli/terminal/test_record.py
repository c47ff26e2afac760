"""Which sources feed a channel, and what a record must be for it. Pure."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.cli.terminal.signing import Unsignable, check
from gateway.config.catalog import Catalog, Match
from gateway.config.loader.faults import nearest
from gateway.config.model.config import Config, Route
from gateway.config.model.sources import Kafka, RedisPubSub, RedisStream, Source, Webhook
from gateway.config.template import Template, fields_of, fill
from gateway.core.errors import NotFound, Rejected
from gateway.core.event import Record, safe_type
from gateway.sources.router import Router, checked_json

ANY, ONE = "test", "x"
"""What stands for a topic's ``*`` and ``?``."""

_HEADER = re.compile(r"\{headers\.([^{}]+)\}")
_FIELD = re.compile(r"\{fields\.([^{}]+)\}")

_TYPED_FORMATS = ("auto", "cloudevents")


@dataclass(frozen=True, slots=True)
class Parcel:
    """A record on its way: through which source, under which topic, and what goes along."""

    source: str
    config: Source
    topic: str
    payload: bytes
    type: str | None = None
    """Where the record itself carries it: in an envelope it is part of the payload."""
    key: str | None = None
    """A Kafka record's key; of a post its ``Idempotency-Key``."""
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    """Of a Redis stream's entry, beside payload and type."""
    reaches: Sequence[str] = ()
    """All channels that get an event of it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to arrive, and by which way if somebody minds."""

    channel: str
    payload: bytes | None
    """None: any; each channel has one that it takes."""
    type: str | None = None
    key: str | None = None
    source: str | None = None
    topic: str | None = None
    number: int = 1


NONE_LACKING: Mapping[str, str] = {}


def parcel(config: Config, wish: Wish, lacking: Mapping[str, str] = NONE_LACKING) -> Parcel:
    """Return the best way to send: a webhook before all others, for its answer tells the id.

    ``lacking`` says of sources why they cannot be used from here.

    Raises NotFound where there is no such channel, Rejected with all reasons where nothing can feed it.
    """
    catalog = Catalog(config.channels)
    match = catalog.resolve(wish.channel)
    if match is None:
        raise NotFound(_unknown(catalog, wish.channel))
    router = Router(
        catalog,
        event_bytes=config.limits.event_bytes,
        events={name: source.event for name, source in config.sources.items()},
    )
    payload = _payload(match, wish)
    reasons = []
    for route in _ordered(config, match):
        if wish.source is not None and route.source != wish.source:
            continue
        if route.source in lacking:
            reasons.append(f"{route.source}: {lacking[route.source]}")
            continue
        try:
            return _try(config, router, match, route, wish, payload)
        except (Rejected, Unsignable, NotFound) as error:
            reasons.append(f"{route.source}: {error}")
    if not reasons:
        feeding = ", ".join(dict.fromkeys(route.source for route in match.declared.spec.from_))
        reasons.append(f"the source {wish.source!r} does not feed it; these do: {feeding}")
    raise Rejected(
        "\n".join((f"cannot send to {match.name}:", *(f"  {each}" for each in reasons))), code="no_route"
    )


def _unknown(catalog: Catalog, name: str) -> str:
    if name in catalog.declared:
        example = fill(name, dict.fromkeys(fields_of(name), "42"))
        return f"{name} stands for many channels: name one of them, such as {example}"
    return f"no channel is called {name!r}; {nearest(name, catalog.declared)}"


def _ordered(config: Config, match: Match) -> list[Route]:
    return sorted(
        match.declared.spec.from_, key=lambda route: not isinstance(config.sources[route.source], Webhook)
    )


def _payload(match: Match, wish: Wish) -> bytes:
    """Return the event's payload. Raises Rejected for one that the channel does not take."""
    is_text = match.declared.spec.payload == "text"
    if wish.payload is None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        told = json.dumps({"test": True, "number": wish.number, "at": now})
        return f"test {wish.number}, {now}".encode() if is_text else told.encode()
    if is_text:
        return wish.payload
    try:
        return checked_json(wish.payload)
    except Rejected as error:
        raise Rejected(
            f"{match.name} takes JSON, and this is none ({error.message}); text stands in quotes: '\"text\"'",
            code=error.code,
        ) from None


def _try(config: Config, router: Router, match: Match, route: Route, wish: Wish, payload: bytes) -> Parcel:
    """Return the parcel for a route after the router had a look at it. Raises Rejected, Unsignable."""
    source = config.sources[route.source]
    topic = _topic(route, match, wish.topic)
    headers: dict[str, str] = {}
    fields: dict[str, str] = {}
    key = wish.key
    for name, expression in route.fields.items():
        value = match.fields.get(name, ANY)
        if expression == "{key}" and isinstance(source, Kafka):
            key = value
        _place(expression, value, headers, fields)
    type_ = wish.type
    if match.declared.spec.payload == "envelope":
        payload = _envelope(type_, payload)
        type_ = None
    elif type_ is not None:
        if source.event.type is not None:
            _place(source.event.type, type_, headers, fields)
            type_ = None
        else:
            _check_typed(source)
    _check_source(source)
    values = _values(source, key, headers, fields)
    record = Record(topic, payload, type=type_, values=values)
    drafts = {draft.channel: draft for draft in router.drafts(route.source, record, 0)}
    if match.name not in drafts:
        raise Rejected(f"the topic {topic!r} leads to {', '.join(drafts)}, and not here", code="no_route")
    if wish.type is not None and drafts[match.name].type != safe_type(wish.type):
        raise Rejected(
            f"its type would be {drafts[match.name].type!r}, by sources.{route.source}.event.type",
            code="bad_type",
        )
    return Parcel(route.source, source, topic, payload, type_, key, headers, fields, tuple(drafts))


def _topic(route: Route, match: Match, given: str | None) -> str:
    template = Template(route.topic, glob=True)
    if given is not None:
        if template.match(given) is None:
            raise Rejected(f"takes the topic {route.topic!r}, and not {given!r}", code="no_route")
        return given
    named = {name: match.fields.get(name, ANY) for name in template.fields}
    return fill(route.topic, named).replace("*", ANY).replace("?", ONE)


def _place(expression: str, value: str, headers: dict[str, str], fields: dict[str, str]) -> None:
    """Put a value where an expression looks for it, where that is a header or field of the record."""
    if (header := _HEADER.fullmatch(expression)) is not None:
        headers[header[1]] = value
    elif (named := _FIELD.fullmatch(expression)) is not None:
        fields[named[1]] = value


def _envelope(type_: str | None, payload: bytes) -> bytes:
    told = b"" if type_ is None else b'"type":%b,' % json.dumps(type_).encode()
    return b'{%b"payload":%b}' % (told, payload)


def _check_typed(source: Source) -> None:
    """Raise Rejected for a source whose records carry no type."""
    if isinstance(source, RedisStream):
        return
    if isinstance(source, Webhook) and (source.verify.github or source.format in _TYPED_FORMATS):
        return
    raise Rejected(
        "its records carry no type: on a channel with payload: envelope they do, or by event.type",
        code="bad_type",
    )


def _check_source(source: Source) -> None:
    """Raise Rejected or Unsignable for a source that cannot be sent to."""
    if isinstance(source, Webhook):
        check(source.verify)
        if source.format in ("kafka-records", "event-hubs"):
            raise Rejected(f"takes {source.format} only, which other senders write", code="no_route")
    elif isinstance(source, (RedisPubSub, RedisStream)):
        if not source.url.get_secret_value():
            raise Rejected("is off: its url is empty", code="no_route")
    elif not source.brokers:
        raise Rejected("is off: its brokers are empty", code="no_route")


def _values(
    source: Source, key: str | None, headers: Mapping[str, str], fields: Mapping[str, str]
) -> Mapping[str, str]:
    """Return what expressions find beside the payload."""
    values = {f"headers.{name.lower()}": text for name, text in headers.items()}
    values |= {f"fields.{name}": text for name, text in fields.items()}
    return values | ({"key": key} if key is not None and isinstance(source, Kafka) else {})
