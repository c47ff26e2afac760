"""The section ``sources``."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, field_validator

from gateway.config.model import patterns
from gateway.config.model.paths import File, resolve_url_files
from gateway.config.model.section import Section, section_default, validate_redis_url, yaml_default
from gateway.config.model.value_types import (
    MAX_PORT,
    Boolean,
    Duration,
    ExpressionText,
    Rate,
    Secret,
    config_value_error,
    parse_duration,
    secret_schema,
)
from gateway.config.model.verify import VerifyConfig


def _pubsub_url(value: Any) -> Any:
    if value == "":
        return value
    if "+" in str(value).partition(":")[0]:
        raise config_value_error(
            "must be redis://, rediss:// or unix://; Sentinel and cluster are only supported in broker.url"
        )
    return validate_redis_url(value)


def _stream_url(value: Any) -> Any:
    return value if value == "" else validate_redis_url(value)


_SINGLE_URL_SCHEMA = secret_schema(rf"(?:{patterns.REDIS_SINGLE})?")
_URL_SCHEMA = secret_schema(rf"(?:{patterns.REDIS})?")
_STREAM_START_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {
                "title": "start",
                **patterns.text_schema(r"new|oldest|[0-9]{1,15}(?:-[0-9]{1,19})?"),
                "examples": ["oldest"],
            },
            {"title": "entry", "type": "integer", "minimum": 0, "examples": [1526919030474]},
        ]
    }
)
_KAFKA_START_SCHEMA = WithJsonSchema(
    {
        "title": "start",
        **patterns.text_schema(rf"new|oldest|{patterns.DURATION_OR_ZERO}|[0-9]{{4}}-?[0-9W][0-9T:.,Z+\-W ]+"),
        "examples": ["oldest"],
    }
)


class EventMappingConfig(Section):
    """How a record becomes an event; the values are expressions with placeholders."""

    type: ExpressionText | None = Field(None, description="the event's type; default: that of the format")
    timestamp: ExpressionText | None = Field(
        None, description="unix milliseconds or ISO 8601; default: that of the format"
    )
    deduplicate: ExpressionText | None = Field(
        None, description="records with the same text are one event; default: the key of the format"
    )


class BaseSourceConfig(Section):
    event: EventMappingConfig = section_default(
        EventMappingConfig, "how a record becomes an event, beside its payload"
    )
    stale_after: Duration | None = Field(
        None,
        description="after this long without a record, source_stale is 1 on the node that gets its records",
    )
    critical: Boolean = Field(False, description="while this source is down or stale, /readyz answers 503")

    @property
    def connection_settings(self) -> Mapping[str, Any]:
        """The settings of its connection: while they stay equal, a reload keeps it."""
        others = ("event", "stale_after", "critical")
        return {name: value for name, value in self if name not in others}


class RedisPubSubConfig(BaseSourceConfig):
    """Redis PUBLISH. The topic of a record is the Redis channel."""

    type: Literal["redis-pubsub"] = Field(description="SUBSCRIBE and PSUBSCRIBE to the topics of all routes")
    url: Annotated[
        Secret, BeforeValidator(resolve_url_files), BeforeValidator(_pubsub_url), _SINGLE_URL_SCHEMA
    ] = Field(description="redis://, rediss:// or unix://; empty disables the source: ${REDIS_URL:-}")
    timeout: Duration = yaml_default("5s", "a connection without any data for this long is lost")


def _stream_start(value: Any) -> Any:
    text = str(value)
    if text in ("new", "oldest") or re.fullmatch(r"[0-9]{1,15}(-[0-9]{1,19})?", text, re.ASCII):
        return text
    raise config_value_error("must be new, oldest, or the id of an entry, such as 1526919030474-0")


class RedisStreamConfig(BaseSourceConfig):
    """Entries of Redis streams (XADD). The topic of a record is the stream's key."""

    type: Literal["redis-stream"] = Field(description="reads the streams that the topics of all routes name")
    url: Annotated[Secret, BeforeValidator(resolve_url_files), BeforeValidator(_stream_url), _URL_SCHEMA] = (
        Field(description="as broker.url, for a Redis 7 or Valkey; empty disables the source: ${REDIS_URL:-}")
    )
    start: Annotated[str, PlainValidator(_stream_start), _STREAM_START_SCHEMA] = yaml_default(
        "new", "where to start a stream key without an offset: new, oldest, or the id of an entry"
    )
    payload: str | None = Field(
        None, min_length=1,
        description="field with the payload; default: the field payload if an entry has one, else the whole"
        " entry as a JSON object",
    )  # fmt: skip
    scan: Duration = yaml_default("5s", "how often new stream keys are looked for, for globs and templates")
    timeout: Duration = yaml_default("5s", "a Redis that does not respond within this is unavailable")


def _kafka_start(value: Any) -> Any:
    text = str(value)
    if text in ("new", "oldest"):
        return text
    try:
        parse_start_time(text)
    except ValueError:
        raise config_value_error(
            "must be new, oldest, a time such as 2026-01-31T12:00:00Z, or a duration such as 1h"
        ) from None
    return text


def parse_start_time(text: str) -> float | datetime:
    """Return the seconds back, or the time, in ``text``. Raises ValueError."""
    try:
        return parse_duration(text)
    except ValueError:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class KafkaTlsConfig(Section):
    """TLS to the Kafka brokers."""

    ca_file: File | None = Field(None, description="PEM file of the CA; default: those of the system")
    certificate: File | None = Field(
        None, description="PEM file of a client certificate, if the brokers require one"
    )
    key: File | None = Field(None, description="PEM file of its private key")
    check_hostname: Boolean = Field(True, description="whether the certificate must have the host's name")


class KafkaSaslConfig(Section):
    """Authentication at the Kafka brokers."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        description="as the brokers require"
    )
    username: str = Field(min_length=1, description="user name")
    password: Secret = Field(description="its password")


_BROKERS_SCHEMA = WithJsonSchema(
    {
        "title": "addresses",
        **patterns.text_schema(f"(?:{patterns.BOOTSTRAP})?"),
        "examples": ["k1:9092,k2:9092"],
    }
)


class KafkaConfig(BaseSourceConfig):
    """Records of Kafka topics; needs the extra ``sse-gateway[kafka]``."""

    type: Literal["kafka"] = Field(
        description="reads the topics of all routes; pip install sse-gateway[kafka]"
    )
    brokers: Annotated[str, _BROKERS_SCHEMA] = Field(
        description="host:port, several with commas; empty disables the source: ${KAFKA_BROKERS:-}"
    )
    group: str = Field(
        "sse-gateway",
        min_length=1,
        description="consumer group to which offsets are committed, for lag tools",
    )
    start: Annotated[str, PlainValidator(_kafka_start), _KAFKA_START_SCHEMA] = yaml_default(
        "new", "where to start a partition without an offset: new, oldest, a time, or a duration back"
    )
    tls: KafkaTlsConfig | None = None
    sasl: KafkaSaslConfig | None = None
    scan: Duration = yaml_default("5s", "how often new topics and partitions are looked for")
    timeout: Duration = yaml_default("10s", "brokers that do not respond within this are unavailable")

    @field_validator("brokers")
    @classmethod
    def _addresses(cls, value: str) -> str:
        ports = [each.rpartition(":")[2].strip() for each in value.split(",")]
        if any(re.fullmatch(r"[0-9]{5,9}", port, re.ASCII) and int(port) > MAX_PORT for port in ports):
            raise config_value_error(f"has a port beyond {MAX_PORT}; write host:port, such as k1:9092")
        if value and not all(re.fullmatch(r"[^:,\s]+:[0-9]{1,5}", each.strip()) for each in value.split(",")):
            raise config_value_error("must be host:port, several with commas: k1:9092,k2:9092")
        return value


FormatName = Literal[
    "auto", "single", "array", "lines", "cloudevents", "rest-proxy", "kafka-records", "event-hubs"
]


class WebhookConfig(BaseSourceConfig):
    """``POST /hooks/{name}``."""

    type: Literal["webhook"] = Field(description="posts to /hooks/<name>")
    verify: VerifyConfig
    format: FormatName = Field(
        "auto", description="format of the bodies; auto detects it, see docs/webhooks.md"
    )
    topic: ExpressionText | None = Field(
        None, description="topic of records that have none in the URL or the format"
    )
    rate: Rate | None = Field(
        None, description="limit of records; requests beyond it get 429 with Retry-After"
    )


SourceConfig = Annotated[
    RedisPubSubConfig | RedisStreamConfig | KafkaConfig | WebhookConfig, Field(discriminator="type")
]

SOURCE_TYPES = ("redis-pubsub", "redis-stream", "kafka", "webhook")


def disabled_reason(source: SourceConfig) -> str:
    """Return why a source is disabled; the empty text if it is not."""
    if isinstance(source, KafkaConfig):
        return "" if source.brokers else "its brokers are empty"
    return "" if isinstance(source, WebhookConfig) or source.url.get_secret_value() else "its url is empty"
