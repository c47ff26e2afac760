"""Describes a configuration in sentences: readers, sources and history of each channel. Pure."""

from collections.abc import Iterator

from gateway.config.model.auth import JwtConfig
from gateway.config.model.config import ChannelConfig, ClaimsAccessConfig, Config, HistoryConfig
from gateway.config.model.sources import KafkaConfig, WebhookConfig, disabled_reason
from gateway.config.model.value_types import UnixSocketPath
from gateway.config.template import Template
from gateway.core.sanitize import redact_url, replace_unprintable

_TITLE_WIDTH = 14


def explain(config: Config) -> str:
    """Return the description, with a paragraph for the node and each channel."""
    lines = [*_node(config)]
    for name, channel in config.channels.items():
        lines += ["", *_channel(name, channel, config)]
    return "\n".join(lines)


def _node(config: Config) -> Iterator[str]:
    limits, server = config.limits, config.server
    scheme = "https" if server.tls else "http"
    guard = " with a token" if server.admin_token else ""
    public = ", ".join(
        str(address) if isinstance(address, UnixSocketPath) else f"{scheme}://{address}{server.base_path}"
        for address in server.listen
    )
    admin = str(server.admin) if isinstance(server.admin, UnixSocketPath) else f"http://{server.admin}"
    yield f"{'listens':<{_TITLE_WIDTH}}{public}; admin {admin}{guard}"
    yield f"{'log':<{_TITLE_WIDTH}}{_log(config)}"
    nodes = "" if server.workers == 1 else f" in each of {server.workers} workers"
    yield f"{'streams':<{_TITLE_WIDTH}}at most {limits.connections}{nodes}"
    per = [
        f"{limits.connections_per_user} for one user" if limits.connections_per_user else "",
        f"{limits.connections_per_address} from one address" if limits.connections_per_address else "",
        f"{limits.channels_per_stream} channels on one",
    ]
    yield f"{'':<{_TITLE_WIDTH}}{', '.join(text for text in per if text)}"


def _acknowledgements(channel: ChannelConfig, config: Config) -> list[str]:
    ack = config.ack if channel.ack is None else channel.ack
    if ack == "none":
        return []
    limit = "one is" if ack.retry_limit == 1 else f"{ack.retry_limit} in a row are"
    interval, timeout = _format_duration(ack.interval), _format_duration(ack.timeout)
    rule = f"must be acknowledged every {interval}, within {timeout}"
    return [f"{rule}; the stream is closed once {limit} missed"]


def _log(config: Config) -> str:
    url = config.broker.url.get_secret_value()
    if url == "memory://":
        return "in memory: of this process, lost at a restart"
    if url.startswith("sqlite"):
        return f"in {url.removeprefix('sqlite:///')}: for all gateways of this host, survives restarts"
    return f"in Redis, keys {config.broker.prefix}:…: for any number of hosts"


def _channel(name: str, channel: ChannelConfig, config: Config) -> Iterator[str]:
    fields = Template(name).fields
    each = f" (one for each {', '.join(f'{{{field}}}' for field in fields)})" if fields else ""
    yield f"{name}{each}"
    yield from _rows("readers", [_readers(channel, config)])
    yield from _rows("from pages of", _origins(channel, config))
    yield from _rows("fed by", [_route(name, at, channel, config) for at in range(len(channel.from_))])
    yield from _rows("payload", [_payload(channel)])
    yield from _rows("history", [_history(channel)])
    yield from _rows("slow clients", [_slow_clients(channel)])
    yield from _rows("heartbeats", _acknowledgements(channel, config))
    if channel.stale_after is not None:
        unready = ", and then the node is unready" if channel.critical else ""
        stale = f"after {_format_duration(channel.stale_after)} without an event{unready}"
        yield from _rows("stale", [stale])


def _rows(title: str, texts: list[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield f"  {title if not number else '':<{_TITLE_WIDTH}}{replace_unprintable(text)}"


def _readers(channel: ChannelConfig, config: Config) -> str:
    access = channel.access
    if access == "public":
        return "everyone"
    if access == "forward":
        url = redact_url(config.auth.forward.url) if config.auth and config.auth.forward else ""
        return f"clients that {url} allows"
    token = ", or ".join(_issuer(jwt) for jwt in (config.auth.jwt if config.auth else None) or ())
    comma = "," if ", or" in token else ""
    if isinstance(access, ClaimsAccessConfig):
        claims = " and ".join(f"{claim} {value}" for claim, value in access.claims.items())
        return f"clients with a token {token}{comma} with {claims}"
    return f"clients with a token {token}{comma} whose channels claim lists it"


def _issuer(jwt: JwtConfig) -> str:
    parts = [f"signed with {'/'.join(jwt.algorithms)}"]
    parts += [f"by {jwt.issuer}"] if jwt.issuer else []
    parts += [f"for {jwt.audience}"] if jwt.audience else []
    return " ".join(parts)


def _origins(channel: ChannelConfig, config: Config) -> list[str]:
    origins = channel.cors.origins if channel.cors is not None else config.cors.origins
    cookies = ", with cookies" if config.cors.credentials and origins else ""
    if "*" in origins:
        return ["every site"]
    return [", ".join(origins) + cookies] if origins else ["its own origin only"]


def _route(name: str, index: int, channel: ChannelConfig, config: Config) -> str:
    route = channel.from_[index]
    source = config.sources[route.source]
    if disabled_reason(source):
        return f"{route.source} ({source.type}), which is off"
    what = {"redis-pubsub": "PUBLISH", "redis-stream": "XADD", "kafka": "topic"}.get(source.type, "")
    if isinstance(source, WebhookConfig):
        text = f"POST /hooks/{route.source}, topic {route.topic}"
    else:
        text = f"{route.source}: {what} {route.topic}"
    if isinstance(source, KafkaConfig):
        text += f" of {source.brokers}"
    named = ", ".join(f"{{{field}}} from {expression}" for field, expression in route.fields.items())
    return f"{text}{f', {named}' if named else ''}"


def _payload(channel: ChannelConfig) -> str:
    schemas = {"json": "JSON as it is", "text": "text as it is", "envelope": "{type, payload, timestamp}"}
    form = "alone" if channel.format == "data" else "in an envelope with id, type and time"
    return f"{schemas[channel.payload]}; clients get it {form}"


def _history(channel: ChannelConfig) -> str:
    if not isinstance(channel.history, HistoryConfig):
        return "none: clients that reconnect have missed events, and get a gap"
    age = channel.history.age
    return f"{channel.history.events} events{'' if age is None else f', at most {_format_duration(age)} old'}"


def _slow_clients(channel: ChannelConfig) -> str:
    return {
        "disconnect": "are disconnected once missed events have expired, and reconnect to a gap",
        "skip": "get a gap, then the oldest event in the history",
        "conflate": "get the newest event of each type"
        + ("" if isinstance(channel.slow_client, str) else f" and key {channel.slow_client.conflate}"),
    }[channel.slow_client_policy]


def _format_duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
