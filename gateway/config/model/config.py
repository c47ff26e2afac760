"""What the YAML file may say: one frozen model per section. Rules across sections are in `checks`.

Every key here does something; a key for a later feature is an unknown key until then.
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

# Heartbeats that clients answer: what finds a stream that nobody hears, behind any proxy.

MIN_ACK_INTERVAL_SECONDS = 1.0
"""Seconds: each question is a request of each client."""


def _ack_interval(value: float) -> float:
    if value < MIN_ACK_INTERVAL_SECONDS:
        raise config_value_error(
            f"must be at least {MIN_ACK_INTERVAL_SECONDS:g}s: each client sends a request that often"
        )
    return value


class AckConfig(Section):
    """Heartbeats that clients answer: after so many misses in a row a stream is closed."""

    interval: Annotated[Duration, AfterValidator(_ack_interval)] = yaml_default(
        "30s", "how often a client is asked"
    )
    timeout: Duration = yaml_default("60s", "a question that is not answered within this is a miss")
    retry_limit: PositiveInt = Field(3, description="misses in a row after which the stream is closed")

    @property
    def max_silence_seconds(self) -> float:
        """Seconds after which a client that never answered is closed, at the latest but for the sweep."""
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
            "must be a path of letters, digits, '.', '_', '~' and '-', with a slash in front: /sse"
        )
    return text.removesuffix("/")


BasePath = Annotated[
    str,
    BeforeValidator(_base_path),
    WithJsonSchema({"title": "path", **patterns.text_schema(patterns.BASE_PATH), "examples": ["/sse"]}),
]


class ServerConfig(Section):
    """Where the gateway listens."""

    listen: ListenOneOrMany = yaml_default(
        "0.0.0.0:8080",
        "public: subscribe, webhooks; host:port, *:port (IPv4 and IPv6), unix:/path, or a list of them",
    )
    admin: Listen = yaml_default("127.0.0.1:9090", "metrics, health, status; keep it private; or unix:/path")
    base_path: BasePath = Field(
        "",
        description="in front of all public paths, for a proxy that cannot take it off: /sse serves"
        " /sse/events, /sse/hooks, /sse/client.js",
    )
    health_on_public: Boolean = Field(
        False,
        description="true: /healthz and /readyz are on the public port too, with their status only, for"
        " platforms that know one port",
    )
    admin_token: BearerSecret | None = Field(
        None,
        description="who asks the admin port must send it as Authorization: Bearer; without it /healthz and"
        " /readyz tell their status only",
    )
    admin_open: Boolean = Field(
        False, description="true: server.admin may be reached from elsewhere without a token"
    )
    admin_hosts: list[HostName] = Field(
        [],
        description="other names of the admin port, such as gateway.monitoring.svc; without a token, and on"
        " loopback, a Host with a dot that is not listed is refused, unless it is an IP address",
    )
    development: Boolean = Field(
        False,
        description="true: who may ask the admin port reads any channel, whatever its access, and sends"
        " events, in the console's try-it panel; not for production",
    )
    workers: Workers = Field(
        1,
        description="processes that share the port, each a node with limits of its own;"
        " auto: one per core; more than one need a broker.url other than memory://",
    )
    tls: TlsConfig | None = None
    trusted_proxies: list[Network] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")],
        description="networks whose X-Forwarded-For is believed; they have no limit as addresses themselves",
    )

    def public_url(self, port: int) -> str:
        """Return the URL of the public port, as somebody on this machine would type it.

        It is the first that is no Unix socket; ``unix:/path`` where all are.
        """
        return self._public_url(self.listen.first_tcp or self.listen[0], port)

    def public_urls(self, ports: Sequence[int]) -> str:
        """Return all of them, by the ports that each is listened on."""
        return ", ".join(self._public_url(*each) for each in zip(self.listen, ports, strict=True))

    def _public_url(self, place: ListenAddress, port: int) -> str:
        if isinstance(place, UnixSocketPath):
            return str(place)
        return f"{'https' if self.tls else 'http'}://{place.connect_address(port)}{self.base_path}"

    def admin_url(self, port: int) -> str:
        """Return the URL of the admin port, likewise."""
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
    """What `sse-gateway check` and the log need not repeat."""

    allow: list[WarningCode] = Field(
        [], description="codes of warnings that are meant, such as drain-over-grace: docs/check.md lists all"
    )


class LoggingConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lines below it are not written"
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
    """Connections to Redis; two more follow the log."""

    max_connections: PositiveInt = Field(10, description="open at once, per node")
    connect: Duration = yaml_default("2s", "a connection that is not made within this has failed")
    wait: Duration = yaml_default("2s", "a call that gets no connection within this has failed")
    idle: Duration = yaml_default("1m", "a connection that nobody used for this long is closed")


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
        "memory://: gone after a restart; sqlite:///file: durable, for all gateways of a host,"
        " relative to this file, sqlite:////file absolute; redis://, rediss://,"
        " redis+sentinel://host,host/master or redis+cluster://host,host: for any number of hosts",
    )
    prefix: Prefix = Field("sse", description="Redis: every key begins with {prefix}")
    timeout: Duration = yaml_default(
        "2s", "Redis: a call without an answer, a follower without a sign of life"
    )
    pool: PoolConfig = section_default(PoolConfig, "Redis: bounds of the connections")


class CorsConfig(Section):
    """Which web pages may read. Without origins no page of another origin can."""

    origins: list[Origin] = Field(
        [], description="exact, or one leading wildcard label (https://*.example.com), or '*' alone"
    )
    credentials: Boolean = Field(False, description="allow cookies (EventSource's withCredentials)")
    max_age: Duration = yaml_default("12h", "how long browsers may keep a preflight's answer")
    allow_headers: list[str] = Field(
        ["Authorization", "Last-Event-ID", "Cache-Control", "Content-Type", "X-Requested-With"],
        description="request headers that fetch-based clients may send",
    )


class TimeoutsConfig(Section):
    heartbeat: Duration = yaml_default("15s", "a comment line after this long without an event")
    heartbeat_minimum: Duration = yaml_default(
        "4s", "the shortest that clients may ask for (heartbeat=5s); if not below heartbeat, they cannot"
    )
    write: Duration = yaml_default("20s", "a client that takes nothing for this long is disconnected")
    request: Duration = yaml_default("10s", "headers and body of a request")
    connection: Duration = yaml_default("1h", "maximum age of a stream, jittered by 20 %")
    retry: Duration = yaml_default("3s", "reconnect delay told to clients, jittered when many are told")
    pre_drain: DurationOrZero = yaml_default(
        "5s", "after SIGTERM, how long a node serves on while /readyz answers 503, for balancers to see it"
    )
    drain: Duration = yaml_default(
        "20s", "a shutdown spreads the closes of its streams over this at most; few streams take less"
    )


class LimitsConfig(Section):
    connections: PositiveInt = Field(15000, description="streams per node")
    connect_rate: Rate | None = Field(
        None, description="streams opened, per node; more are told to come back at a time of their own"
    )
    connections_per_user: PositiveInt | None = Field(
        10, description="streams of one token's subject, over all nodes; null: any number"
    )
    connections_per_address: PositiveInt | None = Field(
        1000, description="connections and streams of one client address (IPv6: /64), per node"
    )
    connect_rate_per_address: Rate | None = yaml_default(
        "200/s", "streams opened by one client address, per node, and preflights; null: any number"
    )
    channels_per_stream: PositiveInt = Field(50, description="channels in one request")
    event_bytes: ByteSize = yaml_default("256KiB", "largest payload of one event")
    webhook_body: ByteSize = yaml_default("16MiB", "largest webhook body, after decompression")
    history_bytes: ByteSize = yaml_default(
        "256MiB",
        "history in memory, all channels together; the rings of live channels may take as much again",
    )


class RouteConfig(Section):
    """Which topics of which source feed a channel."""

    source: str = Field(description="a name under sources")
    topic: Topic = Field(description="exact, glob (orders.*), or template (user:{id})")
    fields: dict[str, ExpressionText] = Field(
        {}, description="fields of the channel's name that the topic does not hold: {id: '{key}'}"
    )


class HistoryConfig(Section):
    events: EventCount = Field(1000, description="kept at the most, per channel")
    age: DurationOrNull = yaml_default("5m", "null: kept until the count pushes it out")


class ClaimsAccessConfig(Section):
    """Claims that a token must have; ``{field}`` stands for what the channel's name holds there."""

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
    origins: list[Origin] = Field(description="replaces the global list for this channel")


class ConflateConfig(Section):
    """Slow clients get the newest event of each type and key only."""

    conflate: ExpressionText = Field(description="key of an event, from JSON pointers: {/symbol}")


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
        "envelope", description="what clients get; message: the envelope, but no event is named by its type"
    )
    history: Annotated[Literal["none"] | HistoryConfig, BeforeValidator(_history)] = section_default(
        HistoryConfig, "none: fan-out only; events carry no id"
    )
    slow_client: SlowClient = Field(
        "disconnect",
        description="for who reads too slowly: disconnect when what was missed is gone; skip: a gap then,"
        " and the oldest still held; conflate: of what was missed only the newest event of each type,"
        " or of each type and key; for channels that tell a state",
    )
    access: Access = Field(description="who may read; a mapping names claims that a token must have")
    cors: ChannelCorsConfig | None = None
    ack: AckSetting | None = Field(
        None, description="replaces the global one for this channel; none: it asks nobody"
    )
    stale_after: Duration | None = Field(
        None, description="without an event for longer, and channel_stale is 1, on all nodes"
    )
    critical: Boolean = Field(False, description="while this channel is stale, /readyz answers 503")

    @property
    def slow_client_policy(self) -> Literal["disconnect", "skip", "conflate"]:
        """What `slow_client` says, without its key."""
        return "conflate" if isinstance(self.slow_client, ConflateConfig) else self.slow_client


class Config(Section):
    """sse-gateway: one file says all."""

    model_config = ConfigDict(title="sse-gateway configuration")

    server: ServerConfig = section_default(ServerConfig)
    logging: LoggingConfig = section_default(LoggingConfig)
    check: CheckConfig = section_default(CheckConfig)
    broker: BrokerConfig = section_default(BrokerConfig)
    cors: CorsConfig = section_default(CorsConfig)
    timeouts: TimeoutsConfig = section_default(TimeoutsConfig)
    limits: LimitsConfig = section_default(LimitsConfig)
    ack: AckSetting = Field(
        "none", description="heartbeats that clients answer, on all channels that do not say otherwise"
    )
    auth: AuthConfig | None = None
    sources: dict[str, SourceConfig] = Field({})
    channels: dict[ChannelName, ChannelConfig] = Field(
        min_length=1,
        json_schema_extra={
            "propertyNames": {"pattern": f"^(?:{patterns.CHANNEL})$", "examples": ["user.{id}"]}
        },
    )
