"""The root of the model, and the sections without a module of their own.

Rules between keys are in `gateway.config.validation`. Every key has an effect; planned keys are unknown keys.
"""

import re
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gateway.config.loader.issues import suggest_nearest
from gateway.config.model import patterns
from gateway.config.model.auth import AuthConfig
from gateway.config.model.paths import SQLITE_URL, resolve_url_files
from gateway.config.model.section import Section, section_default, validate_redis_url, yaml_default
from gateway.config.model.sources import SourceConfig
from gateway.config.model.tls import TlsConfig
from gateway.config.model.value_types import (
    BearerSecret,
    Boolean,
    ByteSize,
    ChannelName,
    Duration,
    DurationOrNull,
    DurationOrZero,
    EventCount,
    ExpressionText,
    Listen,
    ListenAddress,
    ListenOneOrMany,
    Network,
    Origin,
    PositiveInt,
    Rate,
    Secret,
    Topic,
    UnixSocketPath,
    config_value_error,
    describe_yaml_type,
)
from gateway.config.validation.warning_codes import WARNING_CODES

MIN_ACK_INTERVAL_SECONDS = 1.0
"""Shortest interval, in seconds: each ack is a request."""


def _ack_interval(value: float) -> float:
    if value < MIN_ACK_INTERVAL_SECONDS:
        raise config_value_error(
            f"must be at least {MIN_ACK_INTERVAL_SECONDS:g}s: each client sends a request that often"
        )
    return value


class AckConfig(Section):
    """Heartbeats that clients acknowledge; a stream is closed after several misses in a row."""

    interval: Annotated[Duration, AfterValidator(_ack_interval)] = yaml_default(
        "30s", "how often a client must send an ack"
    )
    timeout: Duration = yaml_default("60s", "an ack that takes longer is a miss")
    retry_limit: PositiveInt = Field(3, description="misses in a row after which the stream is closed")

    @property
    def max_silence_seconds(self) -> float:
        """Longest time until a client without acks is closed, in seconds, without the sweep's interval."""
        return self.interval * self.retry_limit + self.timeout


def _ack(value: Any) -> Any:
    if isinstance(value, (dict, AckConfig)) or value == "none":
        return value
    raise config_value_error("must be none, or {interval: 30s, timeout: 60s, retry_limit: 3}")


AckSetting = Annotated[Literal["none"] | AckConfig, Field(union_mode="left_to_right"), BeforeValidator(_ack)]


MAX_WORKERS = 64


def _workers(value: Any) -> Any:
    text = str(value)
    if text == "auto" or (not isinstance(value, bool) and text.isdigit() and 1 <= int(text) <= MAX_WORKERS):
        return "auto" if text == "auto" else int(text)
    raise config_value_error(f"must be auto or a number from 1 to {MAX_WORKERS}")


Workers = Annotated[
    int | Literal["auto"],
    BeforeValidator(_workers),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_WORKERS},
                {"enum": ["auto"]},
                patterns.text_schema("[1-9][0-9]?"),
            ]
        }
    ),
]


def _host_name(value: Any) -> str:
    text = str(value).lower()
    if not isinstance(value, str) or len(text) > 253 or not re.fullmatch(_HOST_NAME, text):
        raise config_value_error("must be a host name without a port, such as gateway.monitoring.svc")
    return text


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
HostName = Annotated[str, BeforeValidator(_host_name), WithJsonSchema(patterns.text_schema(_HOST_NAME))]


def _base_path(value: Any) -> str:
    text = str(value)
    if not isinstance(value, str) or not re.fullmatch(patterns.BASE_PATH, text):
        raise config_value_error(
            "must be a path of letters, digits, '.', '_', '~' and '-' that begins with a slash: /sse"
        )
    return text.removesuffix("/")


BasePath = Annotated[
    str,
    BeforeValidator(_base_path),
    WithJsonSchema({"title": "path", **patterns.text_schema(patterns.BASE_PATH), "examples": ["/sse"]}),
]


class ServerConfig(Section):
    """Addresses and protection of the public port and the admin port."""

    listen: ListenOneOrMany = yaml_default(
        "0.0.0.0:8080",
        "public: subscribe, webhooks; host:port, *:port (IPv4 and IPv6), unix:/path, or a list of them",
    )
    admin: Listen = yaml_default("127.0.0.1:9090", "metrics, health, status; keep it private; or unix:/path")
    base_path: BasePath = Field(
        "",
        description="prefix of all public paths, for a proxy that does not remove it: /sse serves"
        " /sse/events, /sse/hooks, /sse/client.js",
    )
    health_on_public: Boolean = Field(
        False,
        description="serve /healthz and /readyz on the public port too, without a body, for platforms with"
        " one port",
    )
    admin_token: BearerSecret | None = Field(
        None,
        description="required on the admin port as Authorization: Bearer; without it /healthz and /readyz"
        " return only their status",
    )
    admin_open: Boolean = Field(
        False, description="allow server.admin to listen on other addresses than loopback without a token"
    )
    admin_hosts: list[HostName] = Field(
        [],
        description="names of the admin port, such as gateway.monitoring.svc; without a token, and on"
        " loopback, a Host with a dot that is not listed is refused, unless it is an IP address",
    )
    development: Boolean = Field(
        False,
        description="let users of the admin port read any channel and publish events in the console's try-it"
        " panel; not for production",
    )
    workers: Workers = Field(
        1,
        description="processes that share the port, each a node with its own limits;"
        " auto: one per core; more than one need a broker.url other than memory://",
    )
    tls: TlsConfig | None = None
    trusted_proxies: list[Network] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")],
        description="networks whose X-Forwarded-For is trusted; exempt from limits per address",
    )

    def public_url(self, port: int) -> str:
        """Return the URL of the public port for a client on this machine.

        It is the first address that is not a Unix socket; ``unix:/path`` if all are.
        """
        return self._public_url(self.listen.first_tcp or self.listen[0], port)

    def public_urls(self, ports: Sequence[int]) -> str:
        """Return the URLs of all public addresses; ``ports`` has the actual port of each."""
        return ", ".join(self._public_url(*each) for each in zip(self.listen, ports, strict=True))

    def _public_url(self, place: ListenAddress, port: int) -> str:
        if isinstance(place, UnixSocketPath):
            return str(place)
        return f"{'https' if self.tls else 'http'}://{place.connect_address(port)}{self.base_path}"

    def admin_url(self, port: int) -> str:
        """Return the URL of the admin port for a client on this machine."""
        return (
            str(self.admin)
            if isinstance(self.admin, UnixSocketPath)
            else f"http://{self.admin.connect_address(port)}"
        )


def _warning_code(value: Any) -> Any:
    if not isinstance(value, str):
        raise config_value_error(
            f"must be the code of a warning, such as drain-over-grace, and is {describe_yaml_type(value)}"
        )
    if value not in WARNING_CODES:
        raise config_value_error(
            f"no warning has the code {value!r}; {suggest_nearest(value, WARNING_CODES)}"
        )
    return value


WarningCode = Annotated[
    str, BeforeValidator(_warning_code), WithJsonSchema({"title": "code", "enum": list(WARNING_CODES)})
]


class CheckConfig(Section):
    """Accepted warnings of `sse-gateway check` and of the log."""

    allow: list[WarningCode] = Field(
        [], description="codes of warnings to accept, such as drain-over-grace; docs/check.md lists all"
    )


class LoggingConfig(Section):
    """The program's output on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is written"
    )
    format: Literal["json", "console"] = Field("json", description="console is for people")


def _broker_url(value: Any) -> Any:
    text = str(value)
    if text == "memory://" or re.fullmatch(SQLITE_URL, text):
        return value
    if re.match(r"(rediss?(\+\w+)?|unix)://", text):
        return validate_redis_url(value)
    raise config_value_error(
        "must be memory://, sqlite:///file (relative to this file; sqlite:////file is absolute), redis://, rediss://,"
        " redis+sentinel:// or redis+cluster://"
    )


_BROKER_SCHEMA = WithJsonSchema(
    {
        "title": "URL",
        **patterns.text_schema(patterns.BROKER),
        "examples": [
            "sqlite:////var/lib/sse-gateway/log.db",
            "${REDIS_URL}",
            "redis+sentinel://s1:26379,s2:26379/main",
        ],
    }
)


class PoolConfig(Section):
    """Connections to Redis, beside two that follow the log."""

    max_connections: PositiveInt = Field(10, description="open at once, per node")
    connect: Duration = yaml_default("2s", "time limit for opening a connection")
    wait: Duration = yaml_default("2s", "time limit for a call to get a connection")
    idle: Duration = yaml_default("1m", "a connection that is unused for this long is closed")


def _prefix(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(BROKER_PREFIX_PATTERN, value):
        raise config_value_error("must be 1 to 64 letters, digits, '_', '.', ':' or '-'")
    return value


BROKER_PREFIX_PATTERN = r"[A-Za-z0-9_.:\-]{1,64}"
Prefix = Annotated[
    str,
    BeforeValidator(_prefix),
    WithJsonSchema({"title": "text", **patterns.text_schema(BROKER_PREFIX_PATTERN)}),
]


class BrokerConfig(Section):
    """The ordered event log."""

    url: Annotated[
        Secret, BeforeValidator(resolve_url_files), BeforeValidator(_broker_url), _BROKER_SCHEMA
    ] = yaml_default(
        "memory://",
        "memory://: lost at a restart; sqlite:///file: durable, for all gateways of a host,"
        " relative to this file, sqlite:////file absolute; redis://, rediss://,"
        " redis+sentinel://host,host/master or redis+cluster://host,host: for any number of hosts",
    )
    prefix: Prefix = Field("sse", description="Redis: every key begins with {prefix}")
    timeout: Duration = yaml_default(
        "2s", "Redis: time limit for a call, and for silence of the connection that follows the log"
    )
    pool: PoolConfig = section_default(PoolConfig, "Redis: limits of the connections")


class CorsConfig(Section):
    """Which web pages may read. Without origins, no page of another origin may."""

    origins: list[Origin] = Field(
        [], description="exact, or one leading wildcard label (https://*.example.com), or '*' alone"
    )
    credentials: Boolean = Field(False, description="allow cookies (EventSource's withCredentials)")
    max_age: Duration = yaml_default("12h", "how long browsers may cache a preflight response")
    allow_headers: list[str] = Field(
        ["Authorization", "Last-Event-ID", "Cache-Control", "Content-Type", "X-Requested-With"],
        description="request headers that fetch-based clients may send",
    )


class TimeoutsConfig(Section):
    """Durations of streams, requests and the shutdown."""

    heartbeat: Duration = yaml_default("15s", "a comment line after this long without an event")
    heartbeat_minimum: Duration = yaml_default(
        "4s", "the shortest that clients may request (heartbeat=5s); if not below heartbeat, they cannot"
    )
    write: Duration = yaml_default("20s", "a client that reads nothing for this long is disconnected")
    request: Duration = yaml_default("10s", "time limit for the headers and the body of a request")
    connection: Duration = yaml_default("1h", "maximum age of a stream, jittered by 20 %")
    retry: Duration = yaml_default("3s", "reconnect delay of clients, jittered if many reconnect at once")
    pre_drain: DurationOrZero = yaml_default(
        "5s", "after SIGTERM, how long a node still serves while /readyz is 503, so that balancers notice"
    )
    drain: Duration = yaml_default(
        "20s", "longest time over which a shutdown spreads the closing of streams; few streams take less"
    )


class LimitsConfig(Section):
    """Limits per node, user, address and stream."""

    connections: PositiveInt = Field(15000, description="streams per node")
    connect_rate: Rate | None = Field(
        None, description="streams opened, per node; further clients reconnect later, spread over time"
    )
    connections_per_user: PositiveInt | None = Field(
        10, description="streams of one token's subject, over all nodes; null: no limit"
    )
    connections_per_address: PositiveInt | None = Field(
        1000, description="connections and streams of one client address (IPv6: /64), per node"
    )
    connect_rate_per_address: Rate | None = yaml_default(
        "200/s", "streams opened and preflights by one client address, per node; null: no limit"
    )
    channels_per_stream: PositiveInt = Field(50, description="channels in one request")
    event_bytes: ByteSize = yaml_default("256KiB", "largest payload of one event")
    webhook_body: ByteSize = yaml_default("16MiB", "largest webhook body, after decompression")
    history_bytes: ByteSize = yaml_default(
        "256MiB",
        "history in memory, all channels together; recent events of channels with streams may take as much",
    )


class RouteConfig(Section):
    """Which topics of which source feed a channel."""

    source: str = Field(description="a name under sources")
    topic: Topic = Field(description="exact, glob (orders.*), or template (user:{id})")
    fields: dict[str, ExpressionText] = Field(
        {}, description="fields of the channel's name that the topic does not capture: {id: '{key}'}"
    )


class HistoryConfig(Section):
    """How many events of a channel are kept, and for how long."""

    events: EventCount = Field(1000, description="largest number of events, per channel")
    age: DurationOrNull = yaml_default("5m", "longest age; null: no limit")


class ClaimsAccessConfig(Section):
    """Claims that a token must have; ``{field}`` is replaced by the field of the channel's name."""

    claims: dict[str, str] = Field(min_length=1)


def _access(value: Any) -> Any:
    if isinstance(value, (dict, ClaimsAccessConfig)) or value in ("public", "token", "forward"):
        return value
    raise config_value_error('must be public, token, forward, or {claims: {sub: "{id}"}}')


Access = Annotated[
    Literal["public", "token", "forward"] | ClaimsAccessConfig,
    Field(union_mode="left_to_right"),
    BeforeValidator(_access),
]


def _history(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value != "none"):
        raise config_value_error("must be none, or {events: 1000, age: 5m}")
    return value


class ChannelCorsConfig(Section):
    """Which web pages may read one channel."""

    origins: list[Origin] = Field(description="replaces the global list for this channel")


class ConflateConfig(Section):
    """Slow clients get only the newest event of each type and key."""

    conflate: ExpressionText = Field(description="key of an event, made of JSON pointers: {/symbol}")


def _slow_client(value: Any) -> Any:
    if isinstance(value, (dict, ConflateConfig)) or value in ("disconnect", "skip", "conflate"):
        return value
    raise config_value_error('must be disconnect, skip, conflate, or {conflate: "{/symbol}"}')


SlowClient = Annotated[
    Literal["disconnect", "skip", "conflate"] | ConflateConfig,
    Field(union_mode="left_to_right"),
    BeforeValidator(_slow_client),
]


class ChannelConfig(Section):
    """A name that clients subscribe to."""

    from_: list[RouteConfig] = Field(alias="from", min_length=1, description="what feeds the channel")
    payload: Literal["json", "text", "envelope"] = Field(
        "json", description="envelope: the record is {type, payload, timestamp}"
    )
    format: Literal["envelope", "data", "message"] = Field(
        "envelope",
        description="what clients get; message: the envelope without an event field, for onmessage",
    )
    history: Annotated[Literal["none"] | HistoryConfig, BeforeValidator(_history)] = section_default(
        HistoryConfig, "none: fan-out only; events have no id"
    )
    slow_client: SlowClient = Field(
        "disconnect",
        description="for clients that lag: disconnect once missed events are out of the history; skip: send"
        " a gap then, and continue with the oldest event left; conflate: send only the newest missed event of"
        " each type, or of each type and key, for channels that carry a state",
    )
    access: Access = Field(description="who may read; a mapping names claims that a token must have")
    cors: ChannelCorsConfig | None = None
    ack: AckSetting | None = Field(
        None, description="replaces the global setting for this channel; none: no acks"
    )
    stale_after: Duration | None = Field(
        None, description="after this long without an event, channel_stale is 1 on all nodes"
    )
    critical: Boolean = Field(False, description="while this channel is stale, /readyz answers 503")

    @property
    def slow_client_policy(self) -> Literal["disconnect", "skip", "conflate"]:
        """The policy of `slow_client`, without the key."""
        return "conflate" if isinstance(self.slow_client, ConflateConfig) else self.slow_client


class Config(Section):
    """The configuration of sse-gateway."""

    model_config = ConfigDict(title="sse-gateway configuration")

    server: ServerConfig = section_default(ServerConfig)
    logging: LoggingConfig = section_default(LoggingConfig)
    check: CheckConfig = section_default(CheckConfig)
    broker: BrokerConfig = section_default(BrokerConfig)
    cors: CorsConfig = section_default(CorsConfig)
    timeouts: TimeoutsConfig = section_default(TimeoutsConfig)
    limits: LimitsConfig = section_default(LimitsConfig)
    ack: AckSetting = Field(
        "none", description="heartbeats that clients acknowledge, on all channels without an own setting"
    )
    auth: AuthConfig | None = None
    sources: dict[str, SourceConfig] = Field({})
    channels: dict[ChannelName, ChannelConfig] = Field(
        min_length=1,
        json_schema_extra={
            "propertyNames": {"pattern": f"^(?:{patterns.CHANNEL})$", "examples": ["user.{id}"]}
        },
    )
