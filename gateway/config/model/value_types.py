"""Types of setting values: durations, sizes, addresses, topics, origins, secrets."""

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, SecretStr, WithJsonSchema
from pydantic_core import PydanticCustomError

from gateway.config.model import patterns
from gateway.config.model.origins import normalize_origin_rule
from gateway.config.placeholders import Expression
from gateway.config.template import Template

_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES_PER_UNIT = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_RATE = re.compile(r"([0-9]{1,9})\s*/\s*([smhd])", re.ASCII)
_QUANTITY = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]+)", re.ASCII)


MAX_PORT = 65535
MAX_DURATION_SECONDS = 3650 * 86400.0
"""Longest duration, in seconds."""


def config_value_error(message: str) -> PydanticCustomError:
    """Return an error whose message is shown to the operator unchanged."""
    return PydanticCustomError("gateway", "{message}", {"message": message})


def parse_duration(text: str) -> float:
    """Return the seconds in ``250ms``, ``15s``, ``5m``, ``12h`` or ``1d``.

    Raises ValueError with a message for the operator.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in _SECONDS_PER_UNIT:
        raise ValueError(f"{text!r} is not a duration; write a number and a unit: 250ms, 15s, 5m, 12h, 1d")
    return float(match[1]) * _SECONDS_PER_UNIT[match[2]]


def _duration(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise config_value_error(f"a duration needs a unit: {value}s, or ms, m, h, d")
    if not isinstance(value, str):
        raise config_value_error(
            f"must be a duration, such as 250ms, 15s, 5m, 12h or 1d, and is {describe_yaml_type(value)}"
        )
    try:
        seconds = parse_duration(str(value))
    except ValueError as error:
        raise config_value_error(str(error)) from None
    if not 0 < seconds <= MAX_DURATION_SECONDS:
        raise config_value_error("a duration must be more than 0 and at most 3650d")
    return seconds


def _duration_or_zero(value: Any) -> float:
    return 0.0 if value == "0s" else _duration(value)


def _rate(value: Any) -> float:
    if isinstance(value, int) and not isinstance(value, bool):
        raise config_value_error(f"a rate needs a time: {value}/s, or /m, /h, /d")
    match = _RATE.fullmatch(str(value).strip())
    if match is None or int(match[1]) < 1:
        raise config_value_error(
            f"{value!r} is not a rate; write a number and a time: 100/s, 6000/m, 100000/h"
        )
    return int(match[1]) / _SECONDS_PER_UNIT[match[2]]


def _size(value: Any) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise config_value_error(f"a size needs a unit: {value}B, or KB, MB, GB, KiB, MiB, GiB")
    if not isinstance(value, str):
        raise config_value_error(
            f"must be a size, such as 256KiB or 16MiB, and is {describe_yaml_type(value)}"
        )
    match = _QUANTITY.fullmatch(value.strip())
    if match is None or match[2] not in _BYTES_PER_UNIT:
        raise config_value_error(
            f"{value!r} is not a size; write a number and a unit: 512B, 256KiB, 16MiB, 1GB"
        )
    size = int(float(match[1]) * _BYTES_PER_UNIT[match[2]])
    if not 1 <= size <= 2**50:
        raise config_value_error("a size must be at least 1B and at most 2**50")
    return size


def _network(value: Any) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(str(value))
    except ValueError as error:
        raise config_value_error(f"{error}; write {_suggest_network(str(value))}") from None
    if not network.prefixlen:
        raise config_value_error(
            "would trust every client's X-Forwarded-For; list the networks of your proxies"
        )
    return network


def _suggest_network(text: str) -> str:
    try:
        return f"the network, '{ip_network(text, strict=False)}', or the address, '{text.partition('/')[0]}'"
    except ValueError:
        return "an address or a network: 10.0.0.0/8"


class TcpAddress(NamedTuple):
    """A host and port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect_address(self, port: int) -> str:
        """Return host and port by which a program on this machine connects."""
        is_any = self.host in ("*", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound
        return str(TcpAddress("127.0.0.1" if is_any else self.host, port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect; names other than localhost count as remote."""
        return self.host == "localhost" or (is_ip(self.host) and ip_address(self.host).is_loopback)


class UnixSocketPath(NamedTuple):
    """A Unix socket to listen on; only this machine can connect."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def port(self) -> int:
        """Always 0: there is no port."""
        return 0

    def connect_address(self, port: int) -> str:
        """Return it as written."""
        return str(self)

    @property
    def is_loopback(self) -> bool:
        """Always True."""
        return True


ListenAddress = TcpAddress | UnixSocketPath
"""An address to listen on."""


class ListenAddresses(tuple[ListenAddress, ...]):
    """All addresses of one port."""

    __slots__ = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self))

    @property
    def first_tcp(self) -> TcpAddress | None:
        """The first one that is not a Unix socket."""
        return next((place for place in self if isinstance(place, TcpAddress)), None)

    @property
    def port(self) -> int:
        """The port of the first one that has one; 0 if none has."""
        return 0 if self.first_tcp is None else self.first_tcp.port

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to any of them."""
        return all(place.is_loopback for place in self)


MAX_UNIX_PATH_BYTES = 107
"""Longest path of a Unix socket in bytes: 108 in unix(7), with a zero at the end."""


def is_ip(host: str) -> bool:
    """Tell whether a host is an IP address (without brackets) and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_tcp_address(value: Any) -> TcpAddress:
    """Parse ``host:port``. Raises ValueError with a message for the operator."""
    if isinstance(value, TcpAddress):
        return value
    host, separator, port = str(value).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_ip(host) or ":" not in host:
            raise config_value_error(
                f"{host!r} is not an IPv6 address; write [::]:8080, or a name without brackets"
            )
    elif ":" in host:
        raise config_value_error("an IPv6 address stands in brackets: '[::]:8080'")
    if separator and host and port.isascii() and port.isdigit() and int(port[:6]) > MAX_PORT:
        raise config_value_error(
            f"{value!r} has a port beyond {MAX_PORT}; write a number from 1 to {MAX_PORT}"
        )
    if not separator or not host or not port.isascii() or not port.isdigit():
        raise config_value_error(f"{value!r} is not an address; write host:port, such as 0.0.0.0:8080")
    return TcpAddress(host, int(port))


def parse_listen_address(value: Any) -> ListenAddress:
    """Parse ``host:port`` or ``unix:/path``. Raises ValueError with a message for the operator."""
    if isinstance(value, UnixSocketPath):
        return value
    if not isinstance(value, str) or not value.startswith("unix:"):
        return parse_tcp_address(value)
    path = "/" + value[5:].lstrip("/")
    if not value.startswith("unix:/") or path == "/" or "\0" in path:
        raise config_value_error(
            "a Unix socket is named by its absolute path: unix:/run/sse-gateway/public.sock"
        )
    if len(path.encode(errors="surrogateescape")) > MAX_UNIX_PATH_BYTES:
        raise config_value_error(
            f"the path of a Unix socket may have at most {MAX_UNIX_PATH_BYTES} bytes; choose a shorter one"
        )
    return UnixSocketPath(path)


def _parse_listen_addresses(value: Any) -> ListenAddresses:
    if not isinstance(value, (list, tuple)):
        return ListenAddresses([parse_listen_address(value)])
    places = ListenAddresses(map(parse_listen_address, value))
    if not places:
        raise config_value_error("names no address; write host:port, such as 0.0.0.0:8080")
    double = next((place for place in places if places.count(place) > 1), None)
    if double is not None:
        raise config_value_error(f"{double} is listed twice; remove one")
    for every in places:
        if isinstance(every, TcpAddress) and every.host == "*" and every.port:
            others = (each for each in places if isinstance(each, TcpAddress) and each != every)
            if any(each.port == every.port for each in others):
                raise config_value_error(
                    f"{every} includes every address of this machine; remove the others with its port"
                )
    return places


def describe_yaml_type(value: Any) -> str:
    """Return the type of a value in YAML's terms."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return "a number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a mapping"


def _require_text(value: Any) -> str:
    if not isinstance(value, str):
        fix = "; quote it" if isinstance(value, (bool, int, float)) else ""
        raise config_value_error(f"must be text, and is {describe_yaml_type(value)}{fix}")
    return value


def _origin(value: Any) -> str:
    try:
        return normalize_origin_rule(_require_text(value))
    except ValueError as error:
        raise config_value_error(str(error)) from None


def _topic(value: Any) -> str:
    text = _require_text(value)
    try:
        Template(text, glob=True)
    except ValueError as error:
        raise config_value_error(
            f"the topic {error}" if str(error).startswith("must") else str(error)
        ) from None
    return text


def _expression(value: Any) -> str:
    text = _require_text(value)
    try:
        Expression(text)
    except ValueError as error:
        raise config_value_error(str(error)) from None
    return text


def _channel_name(value: Any) -> str:
    text = str(value)
    try:
        Template(text)
    except ValueError as error:
        prefix = "a channel's name " if str(error).startswith(("must", "may")) else ""
        raise config_value_error(prefix + str(error)) from None
    return text


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise config_value_error(f"must be a number, and is {describe_yaml_type(value)}")
    return value


def _boolean(value: Any) -> Any:
    # Pydantic would also accept yes, on and 1, and the rules, which read the raw value, would not.
    if value in (True, False) and isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise config_value_error("must be true or false")


def _string_schema(title: str, pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"title": title, **patterns.text_schema(pattern), "examples": [example]})


def _number_schema(least: int, most: int | None = None) -> WithJsonSchema:
    bounds = {"minimum": least} | ({} if most is None else {"maximum": most})
    return WithJsonSchema({"anyOf": [{"type": "integer", **bounds}, patterns.text_schema("[0-9]+")]})


PositiveInt = Annotated[int, BeforeValidator(_reject_bool), Field(ge=1), _number_schema(1)]
"""A whole number, which may come from the environment as text."""

MAX_HISTORY_EVENTS = 1_000_000
EventCount = Annotated[
    int,
    BeforeValidator(_reject_bool),
    Field(ge=1, le=MAX_HISTORY_EVENTS),
    _number_schema(1, MAX_HISTORY_EVENTS),
]

_DURATION_SCHEMA = _string_schema("duration", patterns.DURATION, "15s")
Duration = Annotated[float, PlainValidator(_duration), _DURATION_SCHEMA]
"""Seconds, from text with a unit."""

DurationOrZero = Annotated[
    float, PlainValidator(_duration_or_zero), _string_schema("duration", patterns.DURATION_OR_ZERO, "15s")
]
"""Seconds, from text with a unit; may be ``0s``."""

DurationOrNull = Annotated[
    float | None,
    PlainValidator(lambda value: None if value is None else _duration(value)),
    WithJsonSchema({"anyOf": [{"type": "null"}, _DURATION_SCHEMA.json_schema]}),
]

ByteSize = Annotated[int, PlainValidator(_size), _string_schema("size", patterns.SIZE, "16MiB")]
"""Bytes, from text with a unit."""

Rate = Annotated[float, PlainValidator(_rate), _string_schema("rate", patterns.RATE, "1000/s")]
"""Per second, from text with a unit."""

_LISTEN_SCHEMA = _string_schema("address", patterns.LISTEN_ADDRESS, "0.0.0.0:8080")
Listen = Annotated[ListenAddress, PlainValidator(parse_listen_address), _LISTEN_SCHEMA]
"""A TCP address or a Unix socket."""

ListenOneOrMany = Annotated[
    ListenAddresses,
    PlainValidator(_parse_listen_addresses),
    WithJsonSchema(
        {
            "title": "address or list",
            "anyOf": [
                _LISTEN_SCHEMA.json_schema,
                {"type": "array", "items": _LISTEN_SCHEMA.json_schema, "minItems": 1, "uniqueItems": True},
            ],
        }
    ),
]
"""One address, or a list."""

Network = Annotated[
    IPv4Network | IPv6Network,
    PlainValidator(_network),
    _string_schema("network", patterns.NETWORK, "10.0.0.0/8"),
]
Origin = Annotated[
    str, PlainValidator(_origin), _string_schema("origin", patterns.ORIGIN, "https://app.example.com")
]
Topic = Annotated[str, PlainValidator(_topic), _string_schema("topic", patterns.TOPIC, "orders.*")]
ExpressionText = Annotated[
    str, PlainValidator(_expression), _string_schema("expression", patterns.EXPRESSION, "{headers.x-event}")
]
"""Text with placeholders, see `gateway.config.placeholders`."""
ChannelName = Annotated[
    str, PlainValidator(_channel_name), WithJsonSchema({"type": "string", "examples": ["user.{id}"]})
]
Boolean = Annotated[
    bool,
    BeforeValidator(_boolean),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, patterns.text_schema("true|false")]}),
]
SECRET_SCHEMA = {"title": "secret", "type": "string", "examples": ["${NAME}", "file:/run/secrets/name"]}

Secret = Annotated[
    SecretStr,
    WithJsonSchema(SECRET_SCHEMA),
]
"""Text that prints as stars; call ``get_secret_value()`` only where it is used."""


def _bearer_secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(patterns.BEARER_VALUE, secret.get_secret_value()):
        raise config_value_error(
            "must be at least 16 ASCII characters without spaces; make one with: openssl rand -hex 32"
        )
    return secret


def secret_schema(pattern: str) -> WithJsonSchema:
    """Return the schema of a secret that matches ``pattern``."""
    return WithJsonSchema({**SECRET_SCHEMA, **patterns.text_schema(pattern)})


BearerSecret = Annotated[Secret, AfterValidator(_bearer_secret), secret_schema(patterns.BEARER_VALUE)]
"""A secret that is valid in ``Authorization: Bearer`` without encoding."""
