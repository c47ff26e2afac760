"""The section ``auth``: tokens, tickets, and forward auth."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gateway.config.model import patterns
from gateway.config.model.paths import File
from gateway.config.model.section import Section, yaml_default
from gateway.config.model.value_types import (
    Boolean,
    Duration,
    DurationOrNull,
    DurationOrZero,
    PositiveInt,
    Secret,
    config_value_error,
    describe_yaml_type,
)

HMAC_KEY_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Shortest key by algorithm (RFC 7518 §3.2)."""

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"]

_HTTP_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

MAX_LEEWAY_SECONDS, MAX_FORWARD_TIMEOUT_SECONDS = 300.0, 30.0
"""Largest values of ``leeway`` and ``forward.timeout``, in seconds."""

ALLOW_HTTP_DESCRIPTION = "allow http:// to another host, where responses can be forged on the way"


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_url = parts.scheme in ("https", "http") and parts.hostname and not any(map(str.isspace, value))
    except ValueError:  # an open bracket
        is_url = False
    if not is_url:
        raise config_value_error("must be a URL, such as https://id.example.com/path")
    if parts.username or parts.password:
        raise config_value_error("must not have a user or password")
    return value


Url = Annotated[
    str,
    AfterValidator(_http_url),
    WithJsonSchema(
        {"title": "URL", **patterns.text_schema(patterns.URL), "examples": ["https://id.example.com/keys"]}
    ),
]


def is_secure_url(url: str) -> bool:
    """Tell whether responses from a URL cannot be forged on the way: https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK_HOSTS


RESERVED_QUERY_NAMES = {"ticket", "channel", "format", "types", "last", "since", "heartbeat", "client"} | {
    "lastEventId", "last_event_id", "Last-Event-ID", "evs_last_event_id", "lastEvent"
}  # fmt: skip
"""Query parameters that the gateway uses itself."""

_RESERVED_BY_LOWER_CASE = {name.lower(): name for name in RESERVED_QUERY_NAMES}


def canonical_query_name(name: str) -> str:
    """Return one of `RESERVED_QUERY_NAMES` for a name in any case, and any other name unchanged."""
    return _RESERVED_BY_LOWER_CASE.get(name.lower(), name)


GATEWAY_SET_HEADERS = {
    *("host", "connection", "content-length", "transfer-encoding", "upgrade", "expect", "te", "trailer"),
    *("x-original-uri", "x-original-method", "x-forwarded-for"),
}
"""Headers of a forward-auth request that the gateway sets itself."""


def _forwarded_header(value: Any) -> Any:
    if isinstance(_header_name(value), str) and value.lower() in GATEWAY_SET_HEADERS:
        raise config_value_error(f"{value!r} is set by the gateway itself; remove it")
    return value


def _header_name(value: Any) -> Any:
    if isinstance(value, str) and not _HTTP_TOKEN.fullmatch(value):
        raise config_value_error("must be a name of letters, digits and dashes (at most 64)")
    return value


def _unreserved_query_name(value: Any) -> Any:
    if isinstance(value, str) and canonical_query_name(value) in RESERVED_QUERY_NAMES:
        raise config_value_error(f"{value!r} is a parameter of the gateway; choose another name")
    return _header_name(value)


def _at_most(seconds: float, why: str) -> AfterValidator:
    def check(value: float) -> float:
        if value > seconds:
            raise config_value_error(f"must be at most {seconds:g}s: it {why}")
        return value

    return AfterValidator(check)


def _name_schema(title: str, pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"title": title, **patterns.text_schema(pattern), "examples": [example]})


CookieName = Annotated[
    str, BeforeValidator(_header_name), _name_schema("cookie's name", patterns.HTTP_NAME, "session")
]
QueryName = Annotated[
    str,
    BeforeValidator(_unreserved_query_name),
    _name_schema(
        "name",
        rf"(?!(?:{patterns.case_insensitive(set(_RESERVED_BY_LOWER_CASE))})$){patterns.HTTP_NAME}",
        "access_token",
    ),
]
HeaderName = Annotated[
    str,
    BeforeValidator(_forwarded_header),
    _name_schema(
        "header",
        rf"(?!(?:{patterns.case_insensitive(GATEWAY_SET_HEADERS)})$){patterns.HTTP_NAME}",
        "Authorization",
    ),
]
Leeway = Annotated[DurationOrZero, _at_most(MAX_LEEWAY_SECONDS, "only covers clock differences")]
ForwardTimeout = Annotated[Duration, _at_most(MAX_FORWARD_TIMEOUT_SECONDS, "delays clients")]


_HMAC_ALGORITHM = {"pattern": "^HS"}
_HTTP_ALLOWED = {"properties": {"allow_http": {"anyOf": [{"const": True}, patterns.text_schema("true")]}}}


def _secure_url_rule(key: str) -> dict[str, Any]:
    """Return the rule for a URL: https, or ``allow_http``."""
    return {
        "if": patterns.requires_keys(key),
        "then": {
            "anyOf": [
                {"properties": {key: patterns.text_schema(patterns.SECURE_URL)}},
                {"required": ["allow_http"], **_HTTP_ALLOWED},
            ]
        },
    }


_JWT_RULES: dict[str, Any] = {
    "allOf": [
        {"oneOf": [patterns.requires_keys(key) for key in ("secret", "public_key_file", "jwks_url")]},
        {
            "if": {"properties": {"algorithms": {"contains": _HMAC_ALGORITHM}}},
            "then": {"properties": {"algorithms": {"items": _HMAC_ALGORITHM}}, "required": ["secret"]},
            "else": {"properties": {"secret": {"type": "null"}}},
        },
        *(
            {
                "if": {"properties": {"algorithms": {"contains": {"const": name}}}},
                "then": {"properties": {"secret": patterns.text_schema(rf"[\s\S]{{{size},}}")}},
            }
            for name, size in HMAC_KEY_BYTES.items()
        ),
        {
            "if": patterns.requires_keys("public_key_file"),
            "then": {
                "properties": {
                    "algorithms": {
                        "anyOf": [{"items": {"pattern": f"^{kind}"}} for kind in ("RS", "ES", "Ed")]
                    }
                }
            },
        },
        _secure_url_rule("jwks_url"),
    ]
}


class JwtConfig(Section):
    """How tokens are verified. ``exp`` is always required."""

    model_config = ConfigDict(json_schema_extra=_JWT_RULES)

    algorithms: list[Algorithm] = Field(min_length=1, description="accepted signature algorithms")
    secret: Secret | None = Field(None, description="key for HS algorithms, at least as long as the hash")
    public_key_file: File | None = Field(None, description="PEM file with the key for RS, ES or EdDSA")
    jwks_url: Url | None = Field(None, description="where the issuer publishes its keys (RFC 7517)")
    allow_http: Boolean = Field(False, description=ALLOW_HTTP_DESCRIPTION)
    audience: str | None = Field(
        None, min_length=1, description="required aud claim; without it any is accepted"
    )
    issuer: str | None = Field(
        None, min_length=1, description="required iss claim; without it any is accepted"
    )
    leeway: Leeway = yaml_default("30s", "accepted difference between the clocks of issuer and gateway")
    max_lifetime: Duration = yaml_default("30d", "tokens that expire later than this from now are rejected")


class _OneOrMany:
    """Lets a list with one element be written without brackets, in the schema too."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


def _one_or_many(value: Any) -> Any:
    if not isinstance(value, (list, dict, JwtConfig)):
        raise config_value_error(
            'must be a mapping, such as {algorithms: [HS256], secret: "${JWT_SECRET}"}, or a list of them,'
            f" and is {describe_yaml_type(value)}"
        )
    return value if isinstance(value, list) else [value]


Issuers = Annotated[
    list[JwtConfig],
    Field(min_length=1),
    BeforeValidator(_one_or_many),
    _OneOrMany,
]


class TicketsConfig(Section):
    """``POST /tickets`` exchanges a token for a short-lived ticket in the URL, for a native EventSource."""

    lifetime: Duration = yaml_default("5m", "how long a ticket is valid; never longer than its token")


class ForwardConfig(Section):
    """An endpoint that authorizes streams of channels with ``access: forward``."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_secure_url_rule("url")]})

    url: Url = Field(
        description="requested with GET; 2xx allows, 401 and 403 deny, anything else is an outage"
    )
    allow_http: Boolean = Field(False, description=ALLOW_HTTP_DESCRIPTION)
    timeout: ForwardTimeout = yaml_default("2s", "a response that takes longer is an outage")
    cache: DurationOrNull = yaml_default(
        "30s", "how long a response is cached for equal requests; null: not at all"
    )
    headers: list[HeaderName] = Field(
        ["Authorization", "Cookie"],
        description="request headers that are forwarded; clients with equal ones share a cached response",
    )
    on_outage: Literal["retry", "refuse", "open"] = Field(
        "retry", description="retry: clients reconnect later; refuse: 403; open: allow them"
    )
    connections: PositiveInt = Field(
        100, description="concurrent requests to the endpoint; further ones wait"
    )


_AUTH_RULES: dict[str, Any] = {
    "allOf": [
        {
            "if": {"anyOf": [patterns.requires_keys(key) for key in ("tickets", "cookie", "query")]},
            "then": patterns.requires_keys("jwt"),
        },
        {
            "if": {"properties": {"jwt": {"type": "array", "minItems": 2}}, "required": ["jwt"]},
            "then": {"properties": {"jwt": {"items": patterns.requires_keys("issuer")}}},
        },
    ]
}


class AuthConfig(Section):
    """Where tokens come from: ``Authorization: Bearer`` first, then the cookie, then the query."""

    model_config = ConfigDict(json_schema_extra=_AUTH_RULES)

    jwt: Issuers | None = Field(None, description="one issuer of tokens, or a list, each with its own issuer")
    cookie: CookieName | None = Field(None, description="name of a cookie that may carry the token")
    query: QueryName | None = Field(
        None,
        description="name of a query parameter that may carry the token; URLs end up in the logs of proxies",
    )
    tickets: TicketsConfig | None = None
    forward: ForwardConfig | None = None
